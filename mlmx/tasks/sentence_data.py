"""Judged sentences and pairs of sentences."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlmx.build import NonNegative, Positive
from mlmx.data import microworld

log = logging.getLogger(__name__)


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


def tell_blank(examples: Sequence[Judged], source: str) -> None:
    """Say how many examples have a text in which there is nothing; they are judged like the others."""
    if blank := [example.id for example in examples if not all(text.strip() for text in example.texts)]:
        log.warning("%s: %d examples have an empty text, the first is %s", source, len(blank), blank[0])


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


_EXAMPLES: Mapping[str, Callable[..., Sequence[tuple[tuple[str, ...], str | float]]]] = {
    "acceptability": microworld.acceptability_examples,
    "paraphrase": microworld.paraphrase_examples,
    "entailment": microworld.entailment_examples,
    "similarity": microworld.similarity_examples,
}


class MicroworldJudgements(SentenceData):
    """Judged sentences of the embedded microworld, of which the words alone tell nothing: what GLUE asks, in a world of its own.

    ``acceptability`` as CoLA (are the words in order), ``paraphrase`` as MRPC, ``entailment`` as MNLI, ``similarity`` as STS-B; the
    two sentences of a pair are in different languages.

    Args:
        judgement: which of them.
        seed: of the world; that of the corpus, or its words mean something else.
        num_train: examples of split ``train``.
        num_dev: examples of split ``dev``.
        num_test: examples of split ``test``.
    """

    def __init__(
        self,
        *,
        judgement: Literal["acceptability", "paraphrase", "entailment", "similarity"],
        seed: NonNegative,
        num_train: Positive,
        num_dev: Positive,
        num_test: Positive,
    ) -> None:
        self.judgement = judgement
        self.seed = seed
        self._sizes = {"train": num_train, "dev": num_dev, "test": num_test}
        self.splits = tuple(self._sizes)
        self.labels, self.metrics = {
            "acceptability": (microworld.ACCEPTABILITY, ("matthews", "accuracy")),
            "paraphrase": (microworld.PARAPHRASE, ("f1", "accuracy")),
            "entailment": (microworld.ENTAILMENT, ("accuracy",)),
            "similarity": (None, ("pearson", "spearman")),
        }[judgement]

    def load(self, split: str) -> Sequence[Judged]:
        examples = _EXAMPLES[self.judgement](seed=self.seed, split=split, num_examples=self._sizes[split])
        return [Judged(str(i), texts, gold) for i, (texts, gold) in enumerate(examples)]
