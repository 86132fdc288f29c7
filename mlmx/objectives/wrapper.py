"""What objectives around another objective share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mlmx.data.batch import Batch, BatchContext, Collator
from mlmx.data.rows import TokenRows
from mlmx.data.vocabulary import Separator
from mlmx.models.encoder import Encoder
from mlmx.objectives.objective import Objective, Output


@dataclass(frozen=True, kw_only=True)
class WrappingCollator(Collator):
    """Another collator, as it is; subclasses change something of its batches.

    Attributes:
        collator: the other one.
    """

    collator: Collator

    @property
    def view(self) -> Literal["segment", "pair"]:  # type: ignore[override]
        return self.collator.view

    @property
    def separator(self) -> Separator:  # type: ignore[override]
        return self.collator.separator

    def arranged(self, rows: TokenRows, context: BatchContext) -> TokenRows:
        return self.collator.arranged(rows, context)

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        return self.collator(rows, context)


class Wrapper(Objective):
    """Another objective, as it is; subclasses change something of it.

    Attributes:
        inner: the other objective.
    """

    def __init__(self, inner: Objective) -> None:
        """Keep the other objective."""
        super().__init__()
        self.encoder = inner.encoder
        self.inner = inner
        self.weights = inner.weights
        self.batch_coupled = inner.batch_coupled

    def collator(self) -> Collator:
        return self.inner.collator()

    def forward(self, batch: Batch) -> Output:
        output: Output = self.inner(batch)
        return output

    def weights_of(self, batch: Batch) -> Mapping[str, float]:
        return self.inner.weights_of(batch)

    def flops(self, batch: Batch) -> int:
        return self.inner.flops(batch)

    def shown(self, batch: Batch) -> Batch:
        return self.inner.shown(batch)

    def before_step(self) -> None:
        self.inner.before_step()

    def after_step(self, step: int) -> None:
        self.inner.after_step(step)

    @property
    def exported(self) -> Encoder:
        return self.inner.exported


def innermost(objective: Objective) -> Objective:
    """Return the objective that wrappers are around."""
    while isinstance(objective, Wrapper):
        objective = objective.inner
    return objective
