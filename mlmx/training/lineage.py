"""What an encoder was pretrained on, by the stages it comes from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmx.data.overlap import batches_of_lines
from mlmx.data.progress import progress_bar
from mlmx.data.store import META, TokenStore
from mlmx.stage import StageDir
from mlmx.tasks.decontamination import Decontaminated, decontaminate, without_texts
from mlmx.tasks.task import Evaluation

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lineage:
    """The corpora an encoder was pretrained on.

    Attributes:
        prepared: the stages that prepared them, the last one first.
        unknown: where it comes from beyond them, if not from random weights: a model of the hub, a folder, a stage that is gone.
    """

    prepared: tuple[StageDir, ...]
    unknown: str | None


def lineage_of(stage: StageDir) -> Lineage:
    """Follow the encoder of a stage back to where it comes from."""
    prepared: dict[Path, StageDir] = {}
    while True:
        if (parent := _trained_before(stage)) is None:
            return Lineage(tuple(prepared.values()), _source(stage))
        if not parent.config_path.exists():
            return Lineage(tuple(prepared.values()), parent.path.name)
        if (corpus := parent.parent("prepare")) is not None:
            if not (corpus.data_dir / META).exists():
                return Lineage(tuple(prepared.values()), corpus.path.name)
            prepared[corpus.path] = corpus
        stage = parent


def published_origin(stage: StageDir) -> StageDir | None:
    """Return the stage that began to pretrain the encoder of this one from published weights; None if none did, or one is gone.

    A stage that is gone is told: what it began from is not known any more.
    """
    first = stage
    while (parent := _trained_before(first)) is not None:
        if not parent.config_path.exists():
            log.warning("the stage %s is gone, so that the encoder before pretraining cannot be judged beside it", parent.path.name)
            return None
        first = parent
    return first if first.config()["kind"] == "pretrain" and _source(first) is not None else None


def _trained_before(stage: StageDir) -> StageDir | None:
    source = _source(stage)
    return stage.parent("model") or stage.parent("encoder") or (None if source is None else _stage_at(Path(source)))


def _source(stage: StageDir) -> str | None:
    # What a stage loads its encoder from; None where a parent gives it, or its weights are random.
    return (stage.config()["spec"].get("model") or {}).get("source")


def _stage_at(source: Path) -> StageDir | None:
    stage = StageDir(source.parent if source.name == "encoder" else source)
    return stage if stage.config_path.exists() and "parents" in stage.config() else None


def decontaminated(
    stage: StageDir, evaluation: Evaluation, settings: Mapping[str, Any] | None, *, show_progress: bool
) -> tuple[Decontaminated, dict[str, Any] | None]:
    """Look for the examples of an evaluation in the corpora that the judged encoder was pretrained on.

    Args:
        stage: the evaluation's.
        evaluation: what its task gives.
        settings: those of ``decontamination``; None looks for nothing.
        show_progress: whether to say how far it is.

    Returns:
        What was found, and what ``result.json`` says of the search: the ``corpora`` searched, and what is ``unknown``.
    """
    lineage = lineage_of(stage) if settings is not None else Lineage((), None)
    if settings is None or not lineage.prepared:
        plain = Evaluation(scores=evaluation.scores, predictions=without_texts(evaluation.predictions))
        return Decontaminated(plain, ()), None if settings is None else {"corpora": [], "unknown": lineage.unknown}
    stores = [TokenStore.open(corpus.data_dir) for corpus in lineage.prepared]

    def lines() -> Iterator[list[str]]:
        for store in stores:
            yield from batches_of_lines(store)

    total = sum(store.num_segments for store in stores)
    shown = progress_bar(lines(), "decontaminate, lines", total=total, size=len, show=show_progress)
    told = {"corpora": [corpus.path.name for corpus in lineage.prepared], "unknown": lineage.unknown}
    return decontaminate(evaluation, shown, **settings), told
