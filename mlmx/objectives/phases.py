"""Several objectives one after the other, in one training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ConfigDict
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on only

from mlmx.build import Ratio, Unbuilt
from mlmx.data.batch import BatchContext
from mlmx.data.rows import CorpusInfo
from mlmx.errors import user_error
from mlmx.models.encoder import Encoder
from mlmx.objectives.composite import Composite, CompositeCollator, given_parts
from mlmx.objectives.objective import Objective
from mlmx.schedules import known_progress


class Part(TypedDict):
    """A phase."""

    __pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # type: ignore[misc]
    objective: Unbuilt[Objective]
    until: Ratio


@dataclass(frozen=True, kw_only=True)
class PhasesCollator(CompositeCollator):
    """Makes the batch of the part whose phase it is.

    Attributes:
        ends: the progress at which each part's phase ends, never falling, in the parts' order; the last is 1.
    """

    ends: tuple[float, ...]

    def active(self, context: BatchContext) -> Sequence[str]:
        progress = known_progress(context.progress, "objective.parts")
        return next((name,) for name, end in zip(self.parts, self.ends, strict=True) if progress < end or end == 1.0)


class Phases(Composite):
    """Trains one objective after the other, each for a part of the budget.

    It is one training: the learning rate goes by the whole budget, the optimiser keeps its moments, and the order of the rows is
    the same whatever the split. Up to the end of the first phase everything is as with the first objective alone. Where one part
    reads pairs, those that read segments get all sides of each pair. The validation loss is that of the last phase, all the time.
    What is exported is the encoder.

    Source:
        Gisserot-Boukhlef et al. 2025, Should We Still Pretrain Encoders with Masked Language Modeling?, arXiv:2507.00994: causal,
        then masked language modelling under one schedule.

    Terms:
        ``part/term`` for each term of the part whose phase it is: sum and count as the part has them.

    Shapes:
        those of the parts, as ``part/tensor``.

    Deviations:
        none.

    Raises:
        UserError: if no phase goes to the end of the budget, the budget's steps are not known before the training, pairs are joined
            in different ways, or a part cannot be built.
    """

    def __init__(self, encoder: Encoder, corpus: CorpusInfo, *, parts: Mapping[str, Part | None]) -> None:
        """Choose the phases.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            parts: name -> ``{objective: <an objective>, until: <the part of the budget at which its phase ends>}``; null takes a
                part out. Phases go by their ends; the last is 1, and a phase that ends where the one before does is left out.
        """
        phases = _in_order(parts)
        self._ends = tuple(float(part["until"]) for part in phases.values())
        super().__init__(encoder, corpus, {name: part["objective"] for name, part in phases.items()})

    @staticmethod
    def check_settings(*, parts: Mapping[str, Part | None]) -> None:
        """Refuse phases that do not fill the budget.

        Raises:
            UserError: if the last one ends before 1, there is no part, or a name cannot be one.
        """
        _in_order(parts)

    def shares(self, active: Sequence[str], progress: float) -> Mapping[str, float]:
        return dict.fromkeys(active, 1.0)

    def collator(self) -> PhasesCollator:
        parts, view, separator = self.part_collators()
        return PhasesCollator(parts=parts, view=view, separator=separator, ends=self._ends)


def _in_order(parts: Mapping[str, Part | None]) -> dict[str, Part]:
    phases = dict(sorted(given_parts(parts).items(), key=lambda phase: phase[1]["until"]))
    last = list(phases)[-1]
    if (end := phases[last]["until"]) != 1.0:
        raise user_error(
            f"objective.parts.{last}.until", f"must be 1.0 for the last phase, not {end}: nothing is trained after it."
        )
    return phases
