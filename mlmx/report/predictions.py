"""From the predictions of evaluation stages to statistics that can be resampled."""

# S seeds, N examples, K classes, R resamples

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmx.report.runs import ScoreKey
from mlmx.report.statistics import Floats, Statistic

Record = Mapping[str, Any]


def statistic(folders: Sequence[Path], key: ScoreKey) -> tuple[Statistic, tuple[str, ...]] | None:
    """Return the statistic of a score over seeds, and the ids of its examples.

    Args:
        folders: the evaluation stages, one per seed.
        key: which score.

    Returns:
        None if a stage has no predictions that the score can be computed from, or the seeds were judged on different examples.
    """
    per_seed = [_examples(folder, key.split, key.metric) for folder in folders]
    if any(not examples for examples in per_seed):
        return None
    ids = tuple(per_seed[0])
    if any(examples.keys() != per_seed[0].keys() for examples in per_seed):
        return None
    records = [[examples[name] for name in ids] for examples in per_seed]
    first = records[0][0]
    if key.metric in first.get("ratios", {}):
        pairs = np.array([[record["ratios"][key.metric] for record in seed] for seed in records], np.float64)
        return Statistic(pairs.transpose(0, 2, 1), _ratio), ids
    if key.metric in first.get("metrics", {}):
        values = np.array([[record["metrics"][key.metric] for record in seed] for seed in records], np.float64)
        return Statistic(np.stack([values, np.ones_like(values)], axis=1), _ratio), ids
    if key.metric in _CORRELATIONS:
        sides = np.array([[(record["label"], record["prediction"]) for record in seed] for seed in records], np.float64)
        gold, predicted = sides[..., 0], sides[..., 1]
        products = [np.ones_like(gold), gold, predicted, gold**2, predicted**2, gold * predicted]
        return Statistic(np.stack(products, axis=1), _pearson), ids
    return Statistic(_class_components(records), _CLASS_SCORES[key.metric]), ids


def _ratio(sums: Floats) -> Floats:
    part, whole = sums[..., 0, :], sums[..., 1, :]
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def _class_f1(sums: Floats) -> tuple[Floats, Floats]:
    # (..., K, R) F1 and number of gold examples of each class; sums hold hits, predictions and gold, K each.
    hits, predicted, gold = np.split(sums, 3, axis=-2)
    total = predicted + gold
    return np.divide(2 * hits, total, out=np.zeros_like(hits), where=total != 0), gold


def _macro_f1(sums: Floats) -> Floats:
    # Over the classes that occur in the gold of the resample, as the score itself is.
    f1, gold = _class_f1(sums)
    occurs = gold > 0
    result: Floats = (f1 * occurs).sum(axis=-2) / occurs.sum(axis=-2)
    return result


def _weighted_f1(sums: Floats) -> Floats:
    f1, gold = _class_f1(sums)
    result: Floats = (f1 * gold).sum(axis=-2) / gold.sum(axis=-2)
    return result


def _class_accuracy(sums: Floats) -> Floats:
    hits, _, gold = np.split(sums, 3, axis=-2)
    result: Floats = hits.sum(axis=-2) / gold.sum(axis=-2)
    return result


def _matthews(sums: Floats) -> Floats:
    # Of several classes (Gorodkin 2004), where all that are predicted also occur in the gold; 0 where one side is constant.
    hits, predicted, gold = np.split(sums, 3, axis=-2)
    total = gold.sum(axis=-2)
    together = hits.sum(axis=-2) * total - (predicted * gold).sum(axis=-2)
    apart = np.sqrt((total**2 - (predicted**2).sum(axis=-2)) * (total**2 - (gold**2).sum(axis=-2)))
    result: Floats = np.divide(together, apart, out=np.zeros_like(together), where=apart > 0)
    return result


def _pearson(sums: Floats) -> Floats:
    # 0 where one side is constant.
    number, gold, predicted, gold_squared, predicted_squared, product = np.moveaxis(sums, -2, 0)
    together = number * product - gold * predicted
    apart = np.sqrt(np.maximum(number * gold_squared - gold**2, 0) * np.maximum(number * predicted_squared - predicted**2, 0))
    result: Floats = np.divide(together, apart, out=np.zeros_like(together), where=apart > 0)
    return result


# Rank correlations are no function of sums over examples.
_CORRELATIONS = ("pearson", "cosine_pearson")

_CLASS_SCORES: Mapping[str, Callable[[Floats], Floats]] = {
    "macro_f1": _macro_f1,
    "weighted_f1": _weighted_f1,
    "accuracy": _class_accuracy,
    "matthews": _matthews,
}


def _class_components(records: Sequence[Sequence[Record]]) -> Floats:
    # (S, 3 K, N): whether each example is a hit for, is predicted as, and is labelled as each class. Classes that are only ever
    # predicted need no sums of their own: they are not in the gold.
    classes = {name: i for i, name in enumerate(sorted({record["label"] for record in records[0]}))}

    def one_hot(names: Sequence[str]) -> NDArray[np.bool_]:
        index = np.array([classes.get(name, -1) for name in names])
        hot: NDArray[np.bool_] = np.arange(len(classes))[:, None] == index
        return hot

    parts = []
    for seed in records:
        gold, predicted = one_hot([record["label"] for record in seed]), one_hot([record["prediction"] for record in seed])
        parts.append(np.concatenate([gold & predicted, predicted, gold]).astype(np.float64))
    return np.stack(parts)


def _examples(folder: Path, split: str, metric: str) -> dict[str, Record]:
    return {
        record["id"]: record
        for record in _read(folder)
        if record["split"] == split
        and (
            metric in record.get("ratios", {})
            or metric in record.get("metrics", {})
            or (metric in (*_CLASS_SCORES, *_CORRELATIONS) and "label" in record and "prediction" in record)
        )
    }


@lru_cache(maxsize=64)
def _read(folder: Path) -> tuple[Record, ...]:
    path = folder / "predictions.jsonl"
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8") as file:
        return tuple(json.loads(line) for line in file)
