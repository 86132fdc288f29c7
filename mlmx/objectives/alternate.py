"""Several objectives in turn, drawn for each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on only

from mlmx.build import PositiveFloat, Unbuilt
from mlmx.data.batch import BatchContext
from mlmx.data.rows import CorpusInfo
from mlmx.keyed import fold, stream, uniform
from mlmx.models.encoder import Encoder
from mlmx.objectives.composite import Composite, CompositeCollator, given_parts
from mlmx.objectives.objective import Objective


class Part(TypedDict):
    """A part that takes turns with others."""

    __pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # type: ignore[misc]
    objective: Unbuilt[Objective]
    ratio: PositiveFloat


@dataclass(frozen=True, kw_only=True)
class AlternateCollator(CompositeCollator):
    """Makes the batch of one part, or of all where it is there to judge by.

    Attributes:
        ratios: of the steps that each part trains, in the parts' order; they need not sum to 1.
    """

    ratios: tuple[float, ...]

    def active(self, context: BatchContext) -> Sequence[str]:
        names = tuple(self.parts)
        if context.held_out:
            return names
        key = fold(fold(np.array([context.seed], np.int64), stream("objective")), context.step)
        ends = np.cumsum(self.ratios)
        return names[int(np.searchsorted(ends, uniform(key)[0] * ends[-1], side="right")) :][:1]


class Alternate(Composite):
    """Draws for each step which of several objectives it trains.

    All of a global batch has the same objective, a function of seed and step. Each part sees rows with the masks that it would have
    in their place alone. Where one part reads pairs, those that read segments get all sides of each pair. The validation loss is
    that of all parts, weighted by their ratios. What is exported is the encoder.

    Source:
        Lample and Conneau 2019, XLM, arXiv:1901.07291, section 3: MLM and TLM in turn; ``xlm/trainer.py`` of facebookresearch/XLM.

    Terms:
        ``part/term`` for each term of the part that a step trains: sum and count as the part has them.

    Shapes:
        those of the parts, as ``part/tensor``.

    Deviations:
        XLM takes a step of every objective, one after the other, each on a corpus of its own. Here the turn is drawn, and the rows
        are those of one corpus in one order.

    Raises:
        UserError: if there is no part, pairs are joined in different ways, or a part cannot be built.
    """

    def __init__(self, encoder: Encoder, corpus: CorpusInfo, *, parts: Mapping[str, Part | None]) -> None:
        """Choose what takes turns.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            parts: name -> ``{objective: <an objective>, ratio: <above 0>}``; null takes a part out. A part trains a step with the
                probability that its ratio has among all ratios.
        """
        given = given_parts(parts)
        self._ratios = {name: float(part["ratio"]) for name, part in given.items()}
        super().__init__(encoder, corpus, {name: part["objective"] for name, part in given.items()})

    def shares(self, active: Sequence[str], progress: float) -> Mapping[str, float]:
        total = sum(self._ratios[name] for name in active)
        return {name: self._ratios[name] / total for name in active}

    def collator(self) -> AlternateCollator:
        parts, view, separator = self.part_collators()
        return AlternateCollator(parts=parts, view=view, separator=separator, ratios=tuple(self._ratios.values()))
