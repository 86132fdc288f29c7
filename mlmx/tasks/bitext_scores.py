"""Scores of bitext mining: what each example adds to the weighted ones, and what chance gets."""

# N source sentences with gold

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from mlmx.tasks.bitext_data import MiningSet

# Counts that chance exceeds more rarely do not show in a score.
_NEGLIGIBLE = 1e-15


def shares_of_weighted(gold_N: NDArray[np.int64], found_N: NDArray[np.int64]) -> list[dict[str, float]]:
    """Return what each example adds to accuracy and to weighted precision, recall and F1: each of them is the mean over examples.

    A class weighs what it has examples, so that each of its examples stands for the score of the class.
    """
    num_gold, num_found = Counter(gold_N.tolist()), Counter(found_N.tolist())
    num_hits = Counter(gold_N[gold_N == found_N].tolist())
    return [
        {
            "weighted_precision": num_hits[gold] / num_found[gold] if num_found[gold] else 0.0,
            "weighted_recall": num_hits[gold] / num_gold[gold],
            "weighted_f1": 2 * num_hits[gold] / (num_gold[gold] + num_found[gold]),
            "accuracy": float(gold == found),
        }
        for gold, found in zip(gold_N.tolist(), found_N.tolist(), strict=True)
    ]


def mining_by_chance(data: MiningSet) -> dict[str, float]:
    """Return precision, recall and F1 of the expected counts where each source sentence is paired with a random target."""
    sources, targets = (len({pair[side] for pair in data.gold}) for side in (0, 1))
    num_pairs = len(data.source) * len(data.target)
    unknown = 0 if data.gold_complete else (len(data.source) - sources) * (len(data.target) - targets)
    judged = (num_pairs - unknown) / len(data.target)
    right = len(data.gold) / len(data.target)
    return {"precision": right / judged, "recall": 1 / len(data.target), "f1": 2 * right / (judged + len(data.gold))}


def weighted_by_chance(gold_N: NDArray[np.int64], num_targets: int) -> dict[str, float]:
    """Return the expected accuracy and weighted precision, recall and F1 where each source sentence is given a random target.

    Args:
        gold_N: the target of each source sentence.
        num_targets: how many a random one is drawn from.
    """
    right = 1 / num_targets
    precision = f1 = 0.0
    for num_gold, num_classes in zip(*np.unique(np.unique(gold_N, return_counts=True)[1], return_counts=True), strict=True):
        hits, others = (np.arange(binom.isf(_NEGLIGIBLE, n, right) + 1) for n in (num_gold, len(gold_N) - num_gold))
        odds = binom.pmf(hits, num_gold, right)[:, None] * binom.pmf(others, len(gold_N) - num_gold, right)
        found = hits[:, None] + others
        weight = num_gold * num_classes / len(gold_N)
        precision += weight * float((odds * hits[:, None] / np.maximum(found, 1)).sum())
        f1 += weight * float((odds * 2 * hits[:, None] / (num_gold + found)).sum())
    return {"weighted_precision": precision, "weighted_recall": right, "weighted_f1": f1, "accuracy": right}
