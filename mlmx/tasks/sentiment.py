"""Sentiment, and any other task that gives a sentence one of several labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

from mlmx.build import Positive
from mlmx.data.rows import RowDataset
from mlmx.errors import nearest, user_error
from mlmx.models.encoder import Encoder
from mlmx.objectives.objective import Objective
from mlmx.tasks.classification import SequenceClassification, predict
from mlmx.tasks.classification_data import ClassificationData, Labelled
from mlmx.tasks.task import Evaluation, Score, Task
from mlmx.tasks.texts import text_rows

log = logging.getLogger(__name__)


class Sentiment(Task):
    """Sequence classification by fine-tuning: accuracy, macro and weighted F1.

    The labels are those of the training split. F1 is averaged over the labels that occur in the judged split; an example whose
    label never occurs in training can only be wrong, and is reported.

    Args:
        name: the task's name.
        data: the labelled sentences; the split ``train`` is fine-tuned on.
        splits: the splits to judge.
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
        pooling: Literal["mean", "cls"],
        max_length: Positive,
        batch_tokens: Positive,
    ) -> None:
        missing = [split for split in ("train", *splits) if data.splits is not None and split not in data.splits]
        if missing:
            message = f"there are no data of the split {missing[0]!r}, only of {', '.join(data.splits or ())}."
            raise user_error(f"task.{name}.data", message, nearest(missing[0], data.splits or ()))
        self.name = name
        self.data = data
        self.splits = splits
        self.pooling: Literal["mean", "cls"] = pooling
        self.max_length = max_length
        self.batch_tokens = batch_tokens

    def objective(self, encoder: Encoder) -> Objective:
        return SequenceClassification(encoder, labels=self.labels, pooling=self.pooling)

    def training_rows(self, encoder: Encoder) -> RowDataset:
        return self._rows(encoder, self._training_examples, "train")

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        assert isinstance(model, SequenceClassification)
        scores: list[Score] = []
        predictions: list[dict[str, str]] = []
        for split in self.splits:
            examples = self.data.load(split)
            rows = self._rows(model.encoder, examples, split)
            predicted = [self.labels[i] for i in predict(model, rows, batch_tokens=self.batch_tokens).argmax(axis=1)]
            gold = [example.label for example in examples]
            scores += classification_scores(gold, predicted, task=self.name, split=split)
            predictions += [
                {"id": example.id, "split": split, "label": example.label, "prediction": label}
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

    def _rows(self, encoder: Encoder, examples: Sequence[Labelled], split: str) -> RowDataset:
        index = {label: i for i, label in enumerate(self.labels)}
        unseen = Counter(example.label for example in examples if example.label not in index)
        if unseen:
            log.warning("%s: labels of split %s that never occur in training: %s", self.name, split, dict(unseen))
        # Rows to judge need a label to be packed; that of an unseen one is never read.
        labels = np.array([index.get(example.label, 0) for example in examples], np.int64)
        texts = [example.text for example in examples]
        what = f"texts of split {split}"
        return text_rows(encoder, texts, max_length=self.max_length, task=self.name, what=what, labels=labels)


def classification_scores(gold: Sequence[str], predicted: Sequence[str], *, task: str, split: str) -> list[Score]:
    """Return accuracy, macro and weighted F1 over the labels that occur in ``gold``; a label that is never predicted has F1 0."""
    labels = sorted(set(gold))
    values = {
        "macro_f1": f1_score(gold, predicted, labels=labels, average="macro", zero_division=0),
        "weighted_f1": f1_score(gold, predicted, labels=labels, average="weighted", zero_division=0),
        "accuracy": accuracy_score(gold, predicted),
    }
    return [
        Score(task=task, split=split, metric=metric, value=float(value), num_examples=len(gold), higher_is_better=True)
        for metric, value in values.items()
    ]
