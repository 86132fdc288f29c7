"""The learning rate as a function of what is spent of the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mlmx.training.budget import Axis, Budget, Spent

Schedule = Literal["linear", "cosine", "constant", "inverse_sqrt", "wsd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """Rises linearly, then follows a schedule over the rest of the budget.

    The warm-up is counted in steps, in tokens or in parts of the budget, whatever the budget is counted in; the schedule goes by
    the budget and begins where the warm-up has ended.

    Attributes:
        peak: at the end of the warm-up.
        schedule: after it: ``constant``; ``linear`` or ``cosine`` towards 0 at the end of the budget; ``inverse_sqrt`` of what is
            spent (Vaswani et al. 2017); ``wsd``: constant, then linear towards 0 (warmup-stable-decay, Hu et al. 2024).
        warmup_ratio: part of the budget; or
        warmup_steps: steps; or
        warmup_tokens: tokens.
        decay_ratio: part of the budget that ``wsd`` decays over.
    """

    peak: float
    schedule: Schedule
    warmup_ratio: float | None
    warmup_steps: int | None
    warmup_tokens: int | None
    decay_ratio: float | None

    def at(self, budget: Budget, before: Spent, after: Spent, warmed: float) -> tuple[float, float]:
        """Return the learning rate of a step, and how much of the budget the warm-up has taken, this step included.

        Neither the first nor the last step has a learning rate of 0: the warm-up looks at what is spent after the step, the
        schedule at what is spent before it.

        Args:
            budget: when the training ends.
            before: the costs before the step.
            after: the costs after it, as far as they are known: all but the seconds of the optimiser step itself.
            warmed: how much of the budget the warm-up has taken before.
        """
        axis, warmup = self._warmup(budget)
        if before.on(axis) < warmup:
            rise = after.on(axis) / (warmup + after.on(axis) - before.on(axis))
            return self.peak * rise, after.on(budget.axis)
        return self.peak * self._fall(budget, before.on(budget.axis), after.on(budget.axis), warmed), warmed

    def _warmup(self, budget: Budget) -> tuple[Axis, float]:
        if self.warmup_steps is not None:
            return "steps", self.warmup_steps
        if self.warmup_tokens is not None:
            return "tokens", self.warmup_tokens
        assert self.warmup_ratio is not None, "the trainer checks its settings"
        return budget.axis, budget.part(self.warmup_ratio)

    def _fall(self, budget: Budget, before: float, after: float, warmed: float) -> float:
        done = (before - warmed) / (budget.limit - warmed)
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "linear":
            return 1.0 - done
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        if self.schedule == "inverse_sqrt":
            return math.sqrt((warmed + after - before) / after)
        assert self.decay_ratio is not None, "wsd has a decay_ratio"
        left, decay = budget.limit - before, budget.part(self.decay_ratio)
        return 1.0 if left >= decay else left / decay
