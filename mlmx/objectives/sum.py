"""Several objectives at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on only

from mlmx.build import NonNegativeFloat, Unbuilt
from mlmx.data.batch import BatchContext, Collator
from mlmx.data.rows import CorpusInfo
from mlmx.models.encoder import Encoder
from mlmx.objectives.composite import Composite, CompositeCollator, OwnDraws, given_parts
from mlmx.objectives.objective import Objective
from mlmx.schedules import Schedule


class Part(TypedDict):
    """A part of a sum."""

    __pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # type: ignore[misc]
    objective: Unbuilt[Objective]
    weight: NonNegativeFloat
    schedule: NotRequired[Schedule | None]


@dataclass(frozen=True, kw_only=True)
class SumCollator(CompositeCollator):
    """Makes the batches of all parts."""

    def active(self, context: BatchContext) -> Sequence[str]:
        return tuple(self.parts)


class Sum(Composite):
    """Adds objectives that train one encoder, each term divided by its own count.

    The masks of the first part are those that it has alone, so that adding a part to an objective changes nothing of it; those of
    the others are drawn independently of it and of each other. Where one part reads pairs, those that read segments get both
    sides of each pair, each an example of its own: to a contrastive part, a sentence's translation is then one of those that it
    drives away, unless it reads pairs too (``positives: pair``). A batch costs as much as all parts together: see the budgets in
    FLOPs or seconds. The validation loss has the weights of the end of the training. What is exported is the encoder.

    Source:
        Own.

    Terms:
        ``part/term`` for each term of each part: sum and count as the part has them. The loss is the sum of the parts' losses, each
        times ``weight``, and times the value of ``schedule`` at the progress where there is one.

    Shapes:
        those of the parts, as ``part/tensor``.

    Deviations:
        none.

    Raises:
        UserError: if there is no part, pairs are joined in different ways, or a part cannot be built.
    """

    def __init__(self, encoder: Encoder, corpus: CorpusInfo, *, parts: Mapping[str, Part | None]) -> None:
        """Choose what is added.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            parts: name -> ``{objective: <an objective>, weight: <at least 0>, schedule: <a schedule or null>}``; null takes a part
                out. The schedule gives the part of the weight that counts, in [0, 1], at each progress.
        """
        given = given_parts(parts)
        self._weights = {name: float(part["weight"]) for name, part in given.items()}
        self._schedules = {name: part.get("schedule") for name, part in given.items()}
        super().__init__(encoder, corpus, {name: part["objective"] for name, part in given.items()})

    def shares(self, active: Sequence[str], progress: float) -> Mapping[str, float]:
        values = {name: 1.0 if schedule is None else schedule.at(progress) for name, schedule in self._schedules.items()}
        return {name: self._weights[name] * values[name] for name in active}

    def collator(self) -> SumCollator:
        collators, view, separator = self.part_collators()
        first, *others = collators
        parts: dict[str, Collator] = {first: collators[first]}
        parts |= {name: OwnDraws(collator=collators[name], name=name) for name in others}
        return SumCollator(parts=parts, view=view, separator=separator)
