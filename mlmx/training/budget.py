"""What a training has cost so far, and what part of its budget that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Axis = Literal["steps", "tokens", "supervised_tokens", "seconds", "flops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """The cost of a training so far, over all ranks and over all that it was interrupted by.

    Attributes:
        steps: optimiser steps.
        tokens: tokens that went through the model, special ones included.
        supervised_tokens: predictions that the loss summed over, of all terms.
        seconds: training time of the main process, checkpoints and logging included.
        flops: model FLOPs, see ``mlmx.models.flops``.
    """

    steps: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    flops: int = 0

    def after_step(self, *, tokens: int, supervised_tokens: int, flops: int, seconds: float) -> Spent:
        """Return the cost after one more step, ``seconds`` being the new total."""
        return Spent(
            steps=self.steps + 1,
            tokens=self.tokens + tokens,
            supervised_tokens=self.supervised_tokens + supervised_tokens,
            seconds=seconds,
            flops=self.flops + flops,
        )

    def on(self, axis: Axis) -> float:
        """Return one of the numbers."""
        value: float = getattr(self, axis)
        return value

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, seconds to the millisecond."""
        return asdict(replace(self, seconds=round(self.seconds, 3)))


@dataclass(frozen=True, slots=True)
class Budget:
    """When a training ends: with the step that reaches a limit on one axis of its costs.

    Attributes:
        axis: what is limited. ``max_epochs`` and ``max_tokens`` are limits in steps, which the plan knows before the training.
        limit: how much of it.
    """

    axis: Axis
    limit: float

    @classmethod
    def of(cls, num_steps: int | None, limits: Mapping[Axis, float | None]) -> Budget:
        """Return the budget of a training.

        Args:
            num_steps: of the plan, if that is what ends the training; otherwise
            limits: axis -> limit, one of which is given.
        """
        if num_steps is not None:
            return cls("steps", num_steps)
        ((axis, limit),) = ((axis, limit) for axis, limit in limits.items() if limit is not None)
        return cls(axis, limit)

    def progress(self, spent: Spent) -> float:
        """Return the part that is spent, in [0, 1]."""
        return min(1.0, spent.on(self.axis) / self.limit) if self.limit else 1.0

    def is_spent(self, spent: Spent) -> bool:
        """Tell whether there is no further step."""
        return spent.on(self.axis) >= self.limit

    def part(self, ratio: float) -> float:
        """Return a part of the limit; steps are whole."""
        return round(ratio * self.limit) if self.axis == "steps" else ratio * self.limit

    def told(self, spent: Spent) -> str:
        """Say how far a training is."""
        if self.axis == "steps":
            return f"step {spent.steps} of {self.limit}"
        limit = f"{self.limit:,}" if isinstance(self.limit, int) else f"{self.limit:g}"
        return f"step {spent.steps} ({self.progress(spent):.0%} of max_{self.axis}={limit})"
