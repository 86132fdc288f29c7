"""Bitext mining: finding translations among sentence embeddings."""

# S source sentences, R target sentences, D width, M mined pairs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.build import Positive
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import encode, resolve_layer
from mlmx.objectives.objective import Objective
from mlmx.tasks.bitext_data import BitextData, MiningSet
from mlmx.tasks.mining import Margin, Matches, MinedPairs, Retrieval, best_matches, mine
from mlmx.tasks.search import normalised
from mlmx.tasks.task import Evaluation, Task, ratio_scores
from mlmx.tasks.texts import text_rows


class Bitext(Task):
    """Bitext mining by margin-scored cosine of sentence embeddings, judged against gold pairs.

    Gives precision, recall and F1 of the mined pairs (named by margin and retrieval), and, where every sentence of a side has a
    gold pair, the accuracy of its best matches, ``accuracy_forward`` and ``accuracy_backward``. Precision counts a mined pair only
    where the gold can judge it: always if the gold is complete, else where one of its sentences is in a gold pair.

    Args:
        name: the task's name.
        data: the sentences and the gold pairs.
        layer: the layer whose states are pooled: 0 the embeddings, ``last`` or a number up to the number of layers, negative
            from the end.
        pooling: how states become a sentence's embedding.
        margin: ``ratio``, ``distance`` or ``absolute``; see ``mlmx.tasks.mining``.
        num_neighbors: k of the margin's neighbourhoods; 4 in the evaluation of LEM's group and in LASER.
        retrieval: ``forward``, ``backward``, ``intersection`` or ``max``.
        threshold: the least score of a mined pair; None keeps all; ``oracle`` takes the threshold with the best F1 on this very
            data (an upper bound, and named so in the metrics).
        max_length: tokens of a sentence, special ones included; longer ones are cut, and the cut pieces reported.
        batch_tokens: tokens per forward.
    """

    def __init__(
        self,
        *,
        name: str,
        data: BitextData,
        layer: int | Literal["last"],
        pooling: Literal["mean", "cls", "max"],
        margin: Margin,
        num_neighbors: Positive,
        retrieval: Retrieval,
        threshold: float | Literal["oracle"] | None,
        max_length: Positive,
        batch_tokens: Positive,
    ) -> None:
        self.name = name
        self.data = data
        self.layer: int | Literal["last"] = layer
        self.pooling: Literal["mean", "cls", "max"] = pooling
        self.margin: Margin = margin
        self.num_neighbors = num_neighbors
        self.retrieval: Retrieval = retrieval
        self.threshold: float | Literal["oracle"] | None = threshold
        self.max_length = max_length
        self.batch_tokens = batch_tokens

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        encoder = model.encoder if isinstance(model, Objective) else model
        layer = resolve_layer(self.layer, encoder.num_layers, where=f"task.{self.name}.layer")
        data = self.data.load()
        matches = best_matches(
            self._embeddings(encoder, data.source, layer, "source"),
            self._embeddings(encoder, data.target, layer, "target"),
            margin=self.margin,
            num_neighbors=self.num_neighbors,
            device=encoder.base.device,
        )
        return self._evaluation(data, matches)

    def _embeddings(self, encoder: Encoder, texts: Sequence[str], layer: int, side: str) -> NDArray[np.float32]:
        rows = text_rows(encoder, texts, max_length=self.max_length, task=self.name, what=f"{side} sentences")
        return normalised(encode(encoder, rows, layer=layer, pooling=self.pooling, batch_tokens=self.batch_tokens))

    def _evaluation(self, data: MiningSet, matches: Matches) -> Evaluation:
        mined = mine(matches, self.retrieval)
        prefix = f"margin_{self.margin}_{self.retrieval}"
        if self.threshold == "oracle":
            mined = best_f1(mined, data)
            prefix += "_oracle_threshold"
        elif self.threshold is not None:
            mined = mined.above(self.threshold)
            prefix += f"_threshold_{self.threshold:g}"
        records = _mining_records(mined, data, prefix)
        records += _accuracy_records(matches.forward, data, "forward") + _accuracy_records(matches.backward, data, "backward")
        return Evaluation(scores=ratio_scores(records, task=self.name), predictions=records)


def is_judged(pair: tuple[int, int], gold_sources: set[int], gold_targets: set[int], *, gold_complete: bool) -> bool:
    """Tell whether the gold can say of a mined pair that it is right or wrong."""
    return gold_complete or pair[0] in gold_sources or pair[1] in gold_targets


def best_f1(mined: MinedPairs, data: MiningSet) -> MinedPairs:
    """Return the mined pairs above the threshold whose F1 is best, judged by the gold itself."""
    if not len(mined.pairs):
        return mined
    sources, targets = {source for source, _ in data.gold}, {target for _, target in data.gold}
    pairs = [(source, target) for source, target in mined.pairs.tolist()]
    hits = np.cumsum([pair in data.gold for pair in pairs])
    judged = np.cumsum([is_judged(pair, sources, targets, gold_complete=data.gold_complete) for pair in pairs])
    f1 = 2 * hits / (judged + len(data.gold))
    # Equal scores stand or fall together, so a cut is possible only after the last of them.
    last_of_equals = np.append(mined.scores[1:] != mined.scores[:-1], True)
    return mined.above(float(mined.scores[np.where(last_of_equals, f1, -1).argmax()]))


def _mining_records(mined: MinedPairs, data: MiningSet, prefix: str) -> list[dict[str, Any]]:
    # One record per source sentence that the gold speaks of. A mined pair counts to its source, or, where only its target is in the
    # (incomplete) gold, to the source that the target belongs to: the same records for every system, as paired tests need.
    source_of = {target: source for source, target in sorted(data.gold, reverse=True)}
    gold_sources, gold_targets = {source for source, _ in data.gold}, set(source_of)
    units = range(len(data.source)) if data.gold_complete else sorted(gold_sources)
    counts = {source: {"hits": 0, "mined": 0, "gold": 0} for source in units}
    found: dict[int, list[str]] = {source: [] for source in units}
    for source, _ in data.gold:
        counts[source]["gold"] += 1
    for source, target in mined.pairs.tolist():
        if not is_judged((source, target), gold_sources, gold_targets, gold_complete=data.gold_complete):
            continue
        unit = source if source in counts else source_of[target]
        counts[unit]["mined"] += 1
        counts[unit]["hits"] += (source, target) in data.gold
        if unit == source:
            found[unit].append(data.target_ids[target])
    return [
        {
            "id": f"source {data.source_ids[source]}",
            "split": data.split,
            "mined": found[source],
            "ratios": {
                f"{prefix}_precision": [count["hits"], count["mined"]],
                f"{prefix}_recall": [count["hits"], count["gold"]],
                f"{prefix}_f1": [2 * count["hits"], count["mined"] + count["gold"]],
            },
        }
        for source, count in counts.items()
    ]


def _accuracy_records(best: NDArray[np.int64], data: MiningSet, direction: str) -> list[dict[str, Any]]:
    # None where a sentence of this side has no gold pair: its best match could only be wrong.
    ids, other_ids = (data.source_ids, data.target_ids) if direction == "forward" else (data.target_ids, data.source_ids)
    gold = data.gold if direction == "forward" else {(target, source) for source, target in data.gold}
    if len({first for first, _ in gold}) < len(ids):
        return []
    metric = f"accuracy_{direction}"
    return [
        {
            "id": f"{direction} {ids[i]}",
            "split": data.split,
            "prediction": other_ids[match],
            "metrics": {metric: int((i, match) in gold)},
            "ratios": {metric: [int((i, match) in gold), 1]},
        }
        for i, match in enumerate(best.tolist())
    ]
