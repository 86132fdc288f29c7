"""The protocols by which the field judges sentence embeddings of two languages. The names of their scores never mix.

``margin`` mines pairs among many sentences, most of which may have no translation (BUCC); ``cosine`` and ``tatoeba`` look up each
sentence that has one (MTEB, XTREME).
"""

# S source sentences, R target sentences, D width, N gold pairs, M mined pairs

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from mlmx.build import Positive
from mlmx.errors import user_error
from mlmx.tasks.bitext_data import BitextData, MiningSet
from mlmx.tasks.bitext_scores import mining_by_chance, shares_of_weighted, weighted_by_chance
from mlmx.tasks.mining import Margin, Matches, MinedPairs, Retrieval, best_matches, mine
from mlmx.tasks.search import Floats, nearest

Embed = Callable[[MiningSet], tuple[Floats, Floats]]
"""Gives the (S, D) and (R, D) embeddings of a set's sentences, of length 1."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a protocol makes of a set.

    Attributes:
        records: one per example, with ``id`` and ``ratios``; see ``Evaluation.predictions``.
        settings: what the protocol found out by itself and its scores depend on, such as a threshold.
        trivial: metric -> what chance gets, each source sentence with a random target.
    """

    records: Sequence[Record]
    settings: Mapping[str, float] = field(default_factory=dict)
    trivial: Mapping[str, float] = field(default_factory=dict)


class Protocol(ABC):
    """How sentences are matched by their embeddings and the matches judged. Settings are keyword-only parameters."""

    @abstractmethod
    def judge(self, name: str, data: MiningSet, embed: Embed, device: torch.device) -> Judgement:
        """Judge the embeddings of a set.

        Args:
            name: the set's.
            data: the set.
            embed: gives embeddings, of this set or another one.
            device: where products are made.
        """


class MarginMining(Protocol):
    """Mines pairs by the margin of their cosine: precision, recall and F1 against the gold, as LASER does for BUCC.

    Where every sentence of a side has a gold pair, the accuracy of its best matches is given as well. Precision counts a mined pair
    only where the gold can judge it: always if the gold is complete, else where one of its sentences is in a gold pair. Texts that
    occur several times on a side are one sentence.

    Source: Artetxe and Schwenk, arXiv 1811.01136; the threshold as ``tasks/bucc`` of LASER finds it.

    Args:
        margin: ``ratio``, ``distance`` or ``absolute``; see ``mlmx.tasks.mining``.
        num_neighbors: k of the margin's neighbourhoods; 4 in LASER and in the evaluation of LEM's group.
        retrieval: ``forward``, ``backward``, ``intersection`` or ``max``.
        threshold: the least score of a mined pair; null keeps all; ``tuned`` takes the one with the best F1 on ``train``.
        train: what a threshold is tuned on; null where none is. A set is judged with the threshold of the set of the same name, or
            of the only one there is.
    """

    def __init__(
        self,
        *,
        margin: Margin,
        num_neighbors: Positive,
        retrieval: Retrieval,
        threshold: float | Literal["tuned"] | None,
        train: BitextData | None,
    ) -> None:
        if threshold == "tuned" and train is None:
            raise user_error("protocol.train", "is null; a threshold is tuned on data other than what is judged.")
        if threshold != "tuned" and train is not None:
            raise user_error("protocol.train", "has no effect: it is what threshold=tuned is tuned on.")
        self.margin: Margin = margin
        self.num_neighbors = num_neighbors
        self.retrieval: Retrieval = retrieval
        self.threshold: float | Literal["tuned"] | None = threshold
        self.train = train
        # Thresholds belong to the embeddings they were tuned on: encoder by encoder, set by set.
        self._tuned: WeakKeyDictionary[Embed, dict[str, float]] = WeakKeyDictionary()

    def judge(self, name: str, data: MiningSet, embed: Embed, device: torch.device) -> Judgement:
        data = data.distinct()
        matches = self._matches(data, embed, device)
        mined, metric, settings = mine(matches, self.retrieval), f"margin_{self.margin}", {}
        prefix = f"{metric}_{self.retrieval}"
        if self.threshold == "tuned":
            settings["threshold"] = self._tuned_threshold(name, embed, device)
            mined = mined.above(settings["threshold"])
            prefix += "_tuned"
        elif self.threshold is not None:
            mined = mined.above(self.threshold)
            prefix += f"_threshold_{self.threshold:g}"
        records = _mining_records(mined, data, prefix)
        records += _accuracy_records(matches.forward, data, f"{metric}_accuracy_forward")
        records += _accuracy_records(matches.backward, _turned(data), f"{metric}_accuracy_backward")
        chance = len(data.gold) / (len(data.source) * len(data.target))
        trivial = {f"{metric}_accuracy_{direction}": chance for direction in ("forward", "backward")}
        trivial |= {f"{prefix}_{name}": value for name, value in mining_by_chance(data).items()}
        return Judgement(records=records, settings=settings, trivial=trivial)

    def _matches(self, data: MiningSet, embed: Embed, device: torch.device) -> Matches:
        return best_matches(*embed(data), margin=self.margin, num_neighbors=self.num_neighbors, device=device)

    @cached_property
    def _train_sets(self) -> Mapping[str, MiningSet]:
        assert self.train is not None, "the constructor checks it"
        return self.train.load()

    def _tuned_threshold(self, name: str, embed: Embed, device: torch.device) -> float:
        sets = self._train_sets
        chosen = name if name in sets else next(iter(sets))
        if name not in sets and len(sets) > 1:
            raise user_error("protocol.train", f"there is no set {name!r} among {', '.join(sets)}.")
        tuned = self._tuned.setdefault(embed, {})
        if chosen not in tuned:
            data = sets[chosen].distinct()
            tuned[chosen] = best_threshold(mine(self._matches(data, embed, device), self.retrieval), data)
        return tuned[chosen]


class CosineRetrieval(Protocol):
    """Looks up the target of each source sentence by cosine: accuracy and weighted F1, precision and recall, as MTEB does.

    The classes are the target sentences. Of a set with incomplete gold, the sources in the gold are looked up among all targets.

    Source: Muennighoff et al., MTEB, arXiv 2210.07316; ``BitextMiningEvaluator`` of ``mteb``.
    """

    def judge(self, name: str, data: MiningSet, embed: Embed, device: torch.device) -> Judgement:
        source_SD, target_RD = embed(data)
        gold_N2 = np.array(sorted(data.gold))
        found_N = nearest(source_SD[gold_N2[:, 0]], target_RD, 1, device=device).indices[:, 0]
        records = [
            {
                "id": f"{data.source_ids[source]} {data.target_ids[target]}",
                "prediction": data.target_ids[found],
                "texts": [data.source[source], data.target[target]],
                "ratios": {f"cosine_{metric}": [value, 1] for metric, value in values.items()},
            }
            for (source, target), found, values in zip(
                gold_N2.tolist(), found_N.tolist(), shares_of_weighted(gold_N2[:, 1], found_N), strict=True
            )
        ]
        by_chance = weighted_by_chance(gold_N2[:, 1], len(data.target))
        trivial = {f"cosine_{metric}": value for metric, value in by_chance.items()}
        return Judgement(records=records, trivial=trivial)


class Tatoeba(Protocol):
    """Looks up each sentence among those of the other side by cosine: accuracy, both ways, as LASER and XTREME do for Tatoeba.

    XTREME's number is ``tatoeba_accuracy_backward`` where the target is English: its script looks up the English sentences. LASER's
    error rates are of both.

    Source: Hu et al., XTREME, arXiv 2003.11080, ``third_party/run_retrieval.py``; Artetxe and Schwenk, arXiv 1812.10464.
    """

    def judge(self, name: str, data: MiningSet, embed: Embed, device: torch.device) -> Judgement:
        source_SD, target_RD = embed(data)
        sources, targets = (np.unique(side) for side in np.array(sorted(data.gold)).T)
        records: list[Record] = []
        for direction, of, asked, asked_of, among in (
            ("forward", data, sources, source_SD, target_RD),
            ("backward", _turned(data), targets, target_RD, source_SD),
        ):
            found = nearest(asked_of[asked], among, 1, device=device).indices[:, 0]
            records += _accuracies(asked, found, of, f"tatoeba_accuracy_{direction}")
        trivial = {"tatoeba_accuracy_forward": 1 / len(data.target), "tatoeba_accuracy_backward": 1 / len(data.source)}
        return Judgement(records=records, trivial=trivial)


def is_judged(pair: tuple[int, int], gold_sources: set[int], gold_targets: set[int], *, gold_complete: bool) -> bool:
    """Tell whether the gold can say of a mined pair that it is right or wrong."""
    return gold_complete or pair[0] in gold_sources or pair[1] in gold_targets


def best_threshold(mined: MinedPairs, data: MiningSet) -> float:
    """Return the threshold above which mined pairs have the best F1 against the gold of their own data.

    As in LASER, it lies in the middle between the last pair that is kept and the first that is not; it is 0 where no pair is right.
    """
    sources, targets = {source for source, _ in data.gold}, {target for _, target in data.gold}
    pairs = [(source, target) for source, target in mined.pairs.tolist()]
    judged = np.array([is_judged(pair, sources, targets, gold_complete=data.gold_complete) for pair in pairs], bool)
    right = np.array([pair in data.gold for pair in pairs], bool)
    if not right.any():
        return 0.0
    f1 = 2 * np.cumsum(right) / (np.cumsum(judged) + len(data.gold))
    # Equal scores stand or fall together, so a cut is possible only after the last of them.
    last_of_equals = np.append(mined.scores[1:] != mined.scores[:-1], True)
    last = int(np.where(last_of_equals, f1, -1).argmax())
    return float(mined.scores[last : last + 2].mean(dtype=np.float64))


def _turned(data: MiningSet) -> MiningSet:
    return MiningSet(
        source=data.target,
        target=data.source,
        source_ids=data.target_ids,
        target_ids=data.source_ids,
        gold=frozenset((target, source) for source, target in data.gold),
        gold_complete=data.gold_complete,
    )


def _texts(data: MiningSet) -> list[list[str]]:
    # Of each source sentence, with those of its gold translations.
    texts = [[text] for text in data.source]
    for source, target in sorted(data.gold):
        texts[source].append(data.target[target])
    return texts


def _mining_records(mined: MinedPairs, data: MiningSet, prefix: str) -> list[Record]:
    # One record per source sentence that the gold speaks of. A mined pair counts to its source, or, where only its target is in the
    # (incomplete) gold, to the source that the target belongs to: the same records for every system, as paired tests need.
    source_of = {target: source for source, target in sorted(data.gold, reverse=True)}
    gold_sources, gold_targets = {source for source, _ in data.gold}, set(source_of)
    units = range(len(data.source)) if data.gold_complete else sorted(gold_sources)
    counts = {source: {"hits": 0, "mined": 0, "gold": 0} for source in units}
    found: dict[int, list[str]] = {source: [] for source in units}
    texts = _texts(data)
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
            "mined": found[source],
            "texts": texts[source],
            "ratios": {
                f"{prefix}_precision": [count["hits"], count["mined"]],
                f"{prefix}_recall": [count["hits"], count["gold"]],
                f"{prefix}_f1": [2 * count["hits"], count["mined"] + count["gold"]],
            },
        }
        for source, count in counts.items()
    ]


def _accuracy_records(best: NDArray[np.int64], data: MiningSet, metric: str) -> list[Record]:
    # None where a sentence of this side has no gold pair: its best match could only be wrong.
    if len({source for source, _ in data.gold}) < len(data.source):
        return []
    return _accuracies(np.arange(len(best)), best, data, metric)


def _accuracies(asked: NDArray[np.int64], found: NDArray[np.int64], data: MiningSet, metric: str) -> list[Record]:
    texts = _texts(data)
    return [
        {
            "id": f"{metric} {data.source_ids[source]}",
            "prediction": data.target_ids[target],
            "texts": texts[source],
            "ratios": {metric: [int((source, target) in data.gold), 1]},
        }
        for source, target in zip(asked.tolist(), found.tolist(), strict=True)
    ]
