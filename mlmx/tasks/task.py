"""The contract every task keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlmx.data.rows import RowDataset
from mlmx.errors import nearest, user_error
from mlmx.models.encoder import Encoder
from mlmx.objectives.objective import Objective
from mlmx.tasks.embedding import Embedding


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One number a task gives.

    Attributes:
        task: the task's name.
        split: which data, such as ``test``.
        metric: the field's name of the metric; settings that change it are part of the name (``margin_ratio_f1``).
        value: the score.
        num_examples: how many examples it is computed over: sentences, words, pieces, gold pairs or gold entities.
        higher_is_better: its direction.
        trivial: what one gets without a model: by the most frequent answer of the training data (for a word, that of the word), or
            by chance; None where the task does not say.
        settings: what the score depends on and the task's settings do not say as a number, such as the layer that ``last`` is.
        contaminated: how many of how many judged examples also occur in a corpus that the encoder was pretrained on; None where
            that was not looked for. ``mlmx.tasks.decontamination`` sets it.
    """

    task: str
    split: str
    metric: str
    value: float
    num_examples: int
    higher_is_better: bool
    trivial: float | None = None
    settings: Mapping[str, str | float] = field(default_factory=dict)
    contaminated: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What evaluating gives.

    Attributes:
        scores: the numbers.
        predictions: one JSON record per example, in a fixed order, so that scores can be compared example by example. Each has
            ``id`` (unique in its split, and the same for every system judged on the same data) and ``split``, and tells what the
            example contributes to the scores, by one of:

            - ``metrics``: metric -> number, for a score that is the mean over the examples (0/1, a loss, ...);
            - ``ratios``: metric -> [part, whole], for a score that is the sum of parts over the sum of wholes (recall, F1, a loss
              per piece);
            - ``label`` and ``prediction``, from which accuracy, macro and weighted F1 are computed again.

            A score of all examples together (AUC, chrF) is told by none of these, and has intervals over seeds only.

            ``texts`` are those of the example, to be looked for in pretraining corpora; they are not written down.
    """

    scores: Sequence[Score]
    predictions: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


def ratio_scores(records: Sequence[Mapping[str, Any]], *, task: str, lower_is_better: str | tuple[str, ...] = ()) -> list[Score]:
    """Return the scores that the ``ratios`` of records add up to, split by split; 0 where there is nothing to divide by.

    A score is over as many examples as the sum of its wholes. That of an F1 counts what was found beside the gold; what it is about
    is the gold, so it is over as many examples as the recall beside it.

    Args:
        records: as ``Evaluation.predictions`` holds them.
        task: the task's name.
        lower_is_better: how the names of metrics begin that are better when lower.
    """
    sums: dict[tuple[str, str], list[float]] = {}
    for record in records:
        for metric, (part, whole) in record["ratios"].items():
            total = sums.setdefault((record["split"], metric), [0, 0])
            total[0] += part
            total[1] += whole
    return [
        Score(
            task=task,
            split=split,
            metric=metric,
            value=part / whole if whole else 0.0,
            num_examples=int(sums[split, metric.removesuffix("f1") + "recall"][1] if metric.endswith("_f1") else whole),
            higher_is_better=not metric.startswith(lower_is_better),
        )
        for (split, metric), (part, whole) in sums.items()
    ]


def check_splits(splits: Sequence[str], available: Sequence[str] | None, *, where: str) -> None:
    """Check the names of the splits to judge.

    Args:
        splits: their names.
        available: those there are; None where only the data tell.
        where: the setting that names them.

    Raises:
        UserError: if none is named, one twice, or one that there is not.
    """
    if not splits:
        raise user_error(where, "names no split to judge.")
    for i, split in enumerate(splits):
        if split in splits[:i]:
            raise user_error(where, f"names {split!r} twice.")
        if available is not None and split not in available:
            raise user_error(where, f"no split {split!r}; there are {', '.join(available)}.", nearest(split, available))


class Task(ABC):
    """Something to judge an encoder by. Settings are keyword-only parameters of the constructor; ``name`` comes first.

    Attributes:
        name: the word it is selected by, ``task=<name>``.
        folder: the directory of the stage that carries it out, for files beside its scores (a submission, a run, an index); None
            where no stage does, and in all processes but the main one.
        embedding: how it makes vectors of texts; None where it makes none.
        data_of: setting that names another task of the run -> the folder of what that task's evaluation left in ``data/``; of those
            that the task's YAML lists in ``_tasks_``, while it is fine-tuned, or judged if nothing is.
        run_seed: the seed of the run, while it is fine-tuned, for choosing what to train on; None where nothing is.
        before_pretraining: loads the published encoder that mlmx pretrained further, or gives None where there is none; None where
            no stage carries the task out.
    """

    name: str
    folder: Path | None = None
    embedding: Embedding | None = None
    data_of: Mapping[str, Path] = MappingProxyType({})
    run_seed: int | None = None
    before_pretraining: Callable[[], Encoder | None] | None = None

    def objective(self, encoder: Encoder) -> Objective | None:
        """Return what to fine-tune, or None for a task that judges the encoder as it is."""
        return None

    def training_rows(self, encoder: Encoder) -> RowDataset:
        """Return the labelled rows to fine-tune on."""
        raise NotImplementedError(f"{self.name} has no training data")

    def check_data(self) -> None:  # noqa: B027 - made-up data have no mistakes
        """Read what the task trains on and judges by, so that mistakes in it are told before time is spent.

        Raises:
            UserError: if something is wrong with it.
        """

    @abstractmethod
    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        """Judge the encoder, or the fine-tuned objective where ``objective`` returns one.

        Several processes judge together: all call this and get the same, and what goes through the encoder is shared among them.
        """
