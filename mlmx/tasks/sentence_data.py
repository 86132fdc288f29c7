"""Judged sentences and pairs of sentences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Judged:
    """A sentence or a pair of them, and the judgement.

    Attributes:
        id: unique within its split.
        texts: one or two.
        gold: a label's name, a score, or None where it is kept secret.
    """

    id: str
    texts: tuple[str, ...]
    gold: str | float | None


class SentenceData(ABC):
    """A source of judged sentences or pairs. Settings are keyword-only parameters of the constructor.

    Attributes:
        splits: the splits there are; one of them is ``train``.
        labels: the labels' names in the order of the classes; None where the judgement is a score.
        metrics: what the field measures, of ``mlmx.tasks.metrics``.
        submissions: split -> name of the file in which a leaderboard wants its predictions.
    """

    splits: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    submissions: Mapping[str, str] = {}

    @abstractmethod
    def load(self, split: str) -> Sequence[Judged]:
        """Return the examples of a split, in a fixed order."""
