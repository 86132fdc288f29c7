"""GLUE, and any other judgement of sentences and pairs of sentences that is learned by fine-tuning."""

# N examples, C classes

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.build import Positive
from mlmx.data.rows import RowDataset
from mlmx.errors import user_error
from mlmx.models.encoder import Encoder
from mlmx.objectives.objective import Objective
from mlmx.tasks.classification import SequenceClassification, SequenceObjective, SequenceRegression, predict
from mlmx.tasks.embedding import Embedding
from mlmx.tasks.glue_data import MAX_SCORE
from mlmx.tasks.metrics import CLASS_METRICS, SCORE_METRICS
from mlmx.tasks.sentence_data import Judged, SentenceData
from mlmx.tasks.task import Evaluation, Score, Task, check_splits
from mlmx.tasks.texts import text_rows

log = logging.getLogger(__name__)


class Glue(Task):
    """Judging sentences or pairs of sentences by fine-tuning: labels by a classifier, scores by a regression.

    Source: GLUE (arXiv 1804.07461), with the metrics of its leaderboard: Matthews' correlation, accuracy, F1 of class 1, Pearson's
    and Spearman's correlation. Pairs are encoded by the tokenizer's template.

    Args:
        name: the task's name.
        data: the sentences; the split ``train`` is fine-tuned on.
        splits: the splits to judge.
        submission: whether to write the leaderboard's files for the test sets, whose labels are secret, into ``submission/`` in the
            stage's directory.
        pooling: ``cls`` or ``mean`` of the last layer.
        max_length: tokens of a row, special ones included; longer ones are cut, of a pair the longer text first, and the cut
            pieces reported.
        batch_tokens: tokens per forward when judging.
    """

    def __init__(
        self,
        *,
        name: str,
        data: SentenceData,
        splits: tuple[str, ...],
        submission: bool,
        pooling: Literal["mean", "cls"],
        max_length: Positive,
        batch_tokens: Positive,
    ) -> None:
        if splits or not submission:
            check_splits(splits, data.splits, where=f"task.{name}.splits")
        if submission and not data.submissions:
            raise user_error(f"task.{name}.submission", "these data have no leaderboard.")
        self.name = name
        self.data = data
        self.splits = splits
        self.submission = submission
        self.pooling: Literal["mean", "cls"] = pooling
        self.max_length = max_length
        self.embedding = Embedding(layer="last", pooling=pooling, normalize=False, max_length=max_length)
        self.batch_tokens = batch_tokens

    def check_data(self) -> None:
        self._check_classes()
        for split in self.splits:
            self._judged_examples(split)
        for split in self.data.submissions if self.submission else ():
            self.data.load(split)

    def objective(self, encoder: Encoder) -> Objective:
        if self.data.labels is None:
            return SequenceRegression(encoder, pooling=self.pooling)
        return SequenceClassification(encoder, labels=self.data.labels, pooling=self.pooling)

    def training_rows(self, encoder: Encoder) -> RowDataset:
        self._check_classes()
        return self._rows(encoder, self._training_examples, "train")

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        assert isinstance(model, SequenceObjective)
        scores: list[Score] = []
        records: list[dict[str, Any]] = []
        for split in self.splits:
            examples = self._judged_examples(split)
            predicted = self._predict(model, examples, split)
            scores += self._scores(self._numbers(examples), predicted, split)
            records += self._records(examples, predicted, split)
        for split, file in self.data.submissions.items() if self.submission else ():
            examples = self.data.load(split)
            predicted = self._predict(model, examples, split)
            if self.folder is not None:
                self._submit(self.folder / "submission" / file, examples, predicted)
            if split not in self.splits:
                records += self._records(examples, predicted, split)
        return Evaluation(scores=scores, predictions=records)

    @cached_property
    def _training_examples(self) -> Sequence[Judged]:
        return self.data.load("train")

    def _judged_examples(self, split: str) -> Sequence[Judged]:
        examples = self.data.load(split)
        if any(example.gold is None for example in examples):
            raise user_error(f"task.{self.name}.splits", f"{split} has no labels; submission=true writes its predictions.")
        self._tell_absent(examples, split)
        return examples

    def _check_classes(self) -> None:
        there = {example.gold for example in self._training_examples}
        if self.data.labels is not None and len(there) < 2:
            message = f"the training split holds only the label {there.pop()!r}; two at least are needed."
            raise user_error(f"task.{self.name}.data", message)
        self._tell_absent(self._training_examples, "train")

    def _tell_absent(self, examples: Sequence[Judged], split: str) -> None:
        there = {example.gold for example in examples}
        if absent := [label for label in self.data.labels or () if label not in there]:
            log.warning("%s: no example of split %s has the label %s", self.name, split, ", ".join(map(repr, absent)))

    def _rows(self, encoder: Encoder, examples: Sequence[Judged], split: str) -> RowDataset:
        return text_rows(
            encoder,
            [example.texts[0] for example in examples],
            pairs=[example.texts[1] for example in examples] if len(examples[0].texts) == 2 else None,
            max_length=self.max_length,
            task=self.name,
            what=f"rows of split {split}",
            labels=self._numbers(examples),
        )

    def _numbers(self, examples: Sequence[Judged]) -> NDArray[Any]:
        """Return the (N,) classes or scores; 0 for secret ones, which nothing reads."""
        if self.data.labels is None:
            return np.array([example.gold or 0.0 for example in examples], np.float32)
        classes = {label: i for i, label in enumerate(self.data.labels)}
        return np.array([0 if example.gold is None else classes[str(example.gold)] for example in examples], np.int64)

    def _predict(self, model: SequenceObjective, examples: Sequence[Judged], split: str) -> NDArray[Any]:
        """Return the (N,) predicted classes or scores."""
        outputs = predict(model, self._rows(model.encoder, examples, split), batch_tokens=self.batch_tokens)
        return outputs[:, 0] if self.data.labels is None else outputs.argmax(axis=1)

    def _scores(self, gold: NDArray[Any], predicted: NDArray[Any], split: str) -> list[Score]:
        trivial: dict[str, float]
        if self.data.labels is None:
            values = {metric: SCORE_METRICS[metric](gold, predicted) for metric in self.data.metrics}
            trivial = dict.fromkeys(values, 0.0)
        else:
            ((most_frequent, _),) = Counter(self._numbers(self._training_examples).tolist()).most_common(1)
            constant = np.full_like(gold, most_frequent)
            values = {metric: CLASS_METRICS[metric](gold, predicted) for metric in self._class_metrics(split)}
            trivial = {metric: CLASS_METRICS[metric](gold, constant) for metric in values}
        return [
            Score(
                task=self.name,
                split=split,
                metric=metric,
                value=value,
                num_examples=len(gold),
                higher_is_better=True,
                trivial=trivial[metric],
            )
            for metric, value in values.items()
        ]

    def _class_metrics(self, split: str) -> tuple[str, ...]:
        return ("matthews",) if split == "ax" else self.data.metrics

    def _records(self, examples: Sequence[Judged], predicted: NDArray[Any], split: str) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        for example, answer in zip(examples, self._answers(predicted), strict=True):
            record: dict[str, Any] = {"id": example.id, "split": split, "prediction": answer, "texts": example.texts}
            if example.gold is not None:
                record["label"] = example.gold
                if "f1" in self.data.metrics:
                    assert self.data.labels is not None
                    sides = [side == self.data.labels[1] for side in (example.gold, answer)]
                    record["ratios"] = {"f1": [2 * int(all(sides)), sum(sides)]}
            records.append(record)
        return records

    def _answers(self, predicted: NDArray[Any]) -> list[Any]:
        labels = self.data.labels
        return predicted.tolist() if labels is None else [labels[i] for i in predicted.tolist()]

    def _submit(self, path: Path, examples: Sequence[Judged], predicted: NDArray[Any]) -> None:
        if self.data.labels is None:
            answers = [f"{score:.3f}" for score in np.clip(predicted, 0, MAX_SCORE)]
        else:
            answers = self._answers(predicted)
        lines = [f"{example.id}\t{answer}\n" for example, answer in zip(examples, answers, strict=True)]
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(["index\tprediction\n", *lines]), encoding="utf-8")
