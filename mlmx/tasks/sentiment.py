"""Sentiment, and any other task that gives a sentence one of several labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.build import Positive, PositiveFloat
from mlmx.data.rows import RowDataset
from mlmx.errors import Problem, UserError, first_problems, nearest, user_error
from mlmx.keyed import fold, stream, uniform
from mlmx.models.encoder import Encoder
from mlmx.objectives.objective import Objective
from mlmx.tasks.classification import SequenceClassification, predict
from mlmx.tasks.classification_data import ClassificationData, Labelled
from mlmx.tasks.confusion import write_confusion
from mlmx.tasks.embedding import Embedding
from mlmx.tasks.metrics import CLASS_METRICS
from mlmx.tasks.social_text import Step, normalise
from mlmx.tasks.task import Evaluation, Score, Task, check_splits
from mlmx.tasks.texts import text_rows

log = logging.getLogger(__name__)


class Sentiment(Task):
    """Sequence classification by fine-tuning: accuracy, macro and weighted F1.

    The labels are those of the training split; a judged example with another one is an error. F1 is averaged over the labels that
    occur in the judged split.

    Args:
        name: the task's name.
        data: the labelled sentences; the split ``train`` is fine-tuned on.
        splits: the splits to judge.
        normalization: steps of ``mlmx.tasks.social_text`` for every text, such as ``mentions`` and ``links``.
        shots: how many training examples of each label are fine-tuned on, another choice for each seed of the run; None takes all.
        class_weights: what an example of each label counts in the loss: ``balanced`` as much as all its label's together
            (n / (C n_label)), a weight for each label's name (scaled so that their mean over the examples is 1), or None: alike.
        pooling: ``cls`` or ``mean`` of the last layer.
        max_length: tokens of a sentence, special ones included; longer ones are cut, and the cut pieces reported.
        batch_tokens: tokens per forward when judging.
    """

    def __init__(
        self,
        *,
        name: str,
        data: ClassificationData,
        splits: tuple[str, ...],
        normalization: tuple[Step, ...],
        shots: Positive | None,
        class_weights: Literal["balanced"] | dict[str, PositiveFloat] | None,
        pooling: Literal["mean", "cls"],
        max_length: Positive,
        batch_tokens: Positive,
    ) -> None:
        check_splits(splits, data.splits, where=f"task.{name}.splits")
        check_splits(("train",), data.splits, where=f"task.{name}.data")
        self.name = name
        self.data = data
        self.splits = splits
        self.normalization = normalization
        self.shots = shots
        self.class_weights = class_weights
        self.pooling: Literal["mean", "cls"] = pooling
        self.max_length = max_length
        self.embedding = Embedding(layer="last", pooling=pooling, normalize=False, max_length=max_length)
        self.batch_tokens = batch_tokens

    def check_data(self) -> None:
        self._check_shots()
        self._weights()
        for split in self.splits:
            self._judged_examples(split)

    def objective(self, encoder: Encoder) -> Objective:
        return SequenceClassification(encoder, labels=self.labels, pooling=self.pooling, class_weights=self._weights())

    def training_rows(self, encoder: Encoder) -> RowDataset:
        return self._rows(encoder, self._chosen_examples(), "train")

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        assert isinstance(model, SequenceClassification)
        scores: list[Score] = []
        predictions: list[dict[str, Any]] = []
        for split in self.splits:
            examples = self._judged_examples(split)
            rows = self._rows(model.encoder, examples, split)
            predicted = [self.labels[i] for i in predict(model, rows, batch_tokens=self.batch_tokens).argmax(axis=1)]
            gold = [example.label for example in examples]
            trivial = [self._most_frequent] * len(gold)
            scores += classification_scores(gold, predicted, trivial, task=self.name, split=split)
            if self.folder is not None:
                write_confusion(self.folder, split, gold, predicted, self.labels)
            predictions += [
                {"id": example.id, "split": split, "label": example.label, "prediction": label, "texts": [example.text]}
                for example, label in zip(examples, predicted, strict=True)
            ]
        return Evaluation(scores=scores, predictions=predictions)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, sorted; a class is an index into them.

        Raises:
            UserError: if the training split holds fewer than two.
        """
        labels = sorted({example.label for example in self._training_examples})
        if len(labels) < 2:
            raise user_error(f"task.{self.name}.data", f"the training split holds only the label {labels[0]!r}; two are needed.")
        return tuple(labels)

    @cached_property
    def _training_examples(self) -> Sequence[Labelled]:
        return self.data.load("train")

    def _judged_examples(self, split: str) -> Sequence[Labelled]:
        examples = self.data.load(split)
        unknown = [example for example in examples if example.label not in self.labels]
        if unknown:
            raise UserError(first_problems([self._unknown_label(example) for example in unknown]))
        if absent := sorted(set(self.labels) - {example.label for example in examples}):
            log.warning("%s: no example of split %s has the label %s", self.name, split, ", ".join(map(repr, absent)))
        return examples

    def _unknown_label(self, example: Labelled) -> Problem:
        message = f"the label {example.label!r} never occurs in the training split; there are {', '.join(map(repr, self.labels))}."
        return Problem(example.where, message, nearest(example.label, self.labels))

    @property
    def _most_frequent(self) -> str:
        ((label, _),) = Counter(example.label for example in self._training_examples).most_common(1)
        return label

    def _chosen_examples(self) -> Sequence[Labelled]:
        """Return the training examples, or ``shots`` of each label, chosen by the run's seed, in the order of the data."""
        if self.shots is None:
            return self._training_examples
        self._check_shots()
        assert self.run_seed is not None, "a stage that fine-tunes has a seed"
        keys = fold(np.full(len(self._training_examples), self.run_seed, np.int64), stream("few shots"))
        draws = uniform(fold(keys, np.arange(len(keys), dtype=np.int64)))
        chosen: list[int] = []
        for label in self.labels:
            examples = [i for i, example in enumerate(self._training_examples) if example.label == label]
            chosen += sorted(examples, key=lambda i: draws[i])[: self.shots]
        return [self._training_examples[i] for i in sorted(chosen)]

    def _check_shots(self) -> None:
        counts = Counter(example.label for example in self._training_examples)
        problems = [
            Problem(f"task.{self.name}.shots", f"{self.shots} are asked for, and {label!r} has {counts[label]} training examples.")
            for label in self.labels
            if self.shots is not None and counts[label] < self.shots
        ]
        if problems:
            raise UserError(problems)

    def _weights(self) -> NDArray[np.float32] | None:
        """Return the (C,) class weights, of mean 1 over the training examples.

        Raises:
            UserError: if the weights are not those of the labels.
        """
        if self.class_weights is None or (self.class_weights == "balanced" and self.shots is not None):
            return None  # as many shots of each label are balanced
        counts = Counter(example.label for example in self._training_examples)
        numbers = np.array([counts[label] for label in self.labels], np.float64)
        if self.class_weights == "balanced":
            weights = 1 / numbers
        else:
            given = self.class_weights
            if given.keys() != set(self.labels):
                message = f"names {', '.join(given)}; the labels are {', '.join(self.labels)}."
                raise user_error(f"task.{self.name}.class_weights", message)
            weights = np.array([given[label] for label in self.labels])
            numbers = numbers if self.shots is None else np.ones_like(numbers)
        result: NDArray[np.float32] = (weights * numbers.sum() / (weights * numbers).sum()).astype(np.float32)
        return result

    def _rows(self, encoder: Encoder, examples: Sequence[Labelled], split: str) -> RowDataset:
        index = {label: i for i, label in enumerate(self.labels)}
        labels = np.array([index[example.label] for example in examples], np.int64)
        texts = [normalise(example.text, self.normalization) for example in examples]
        what = f"texts of split {split}"
        return text_rows(encoder, texts, max_length=self.max_length, task=self.name, what=what, labels=labels)


def classification_scores(
    gold: Sequence[str], predicted: Sequence[str], trivial: Sequence[str], *, task: str, split: str
) -> list[Score]:
    """Return accuracy, macro and weighted F1 over the labels that occur in ``gold``; a label that is never predicted has F1 0.

    Args:
        gold: the labels' names.
        predicted: the predicted ones.
        trivial: what one would predict without looking.
        task: the task's name.
        split: the split's name.
    """
    values, trivial_values = (_values(gold, answers) for answers in (predicted, trivial))
    return [
        Score(
            task=task,
            split=split,
            metric=metric,
            value=value,
            num_examples=len(gold),
            higher_is_better=True,
            trivial=trivial_values[metric],
        )
        for metric, value in values.items()
    ]


def _values(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    sides = np.array(gold), np.array(predicted)
    return {metric: CLASS_METRICS[metric](*sides) for metric in ("macro_f1", "weighted_f1", "accuracy")}
