"""Numbers that change while a training goes on: mask ratios, weights of a sum. The learning rate's are in ``training.schedule``.

All are parts of a whole, in [0, 1], and functions of the progress: the part of the budget that is spent, in [0, 1].
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, GetPydanticSchema
from pydantic_core import PydanticCustomError, core_schema

from mlmx.build import Ratio
from mlmx.errors import user_error


class Schedule(ABC):
    """A number in [0, 1] as a function of the progress."""

    @abstractmethod
    def at(self, progress: float) -> float:
        """Return the number at a progress in [0, 1]."""

    @property
    @abstractmethod
    def most(self) -> float:
        """The largest number there is."""


class Constant(Schedule):
    """The same all the time.

    Args:
        value: the number, in [0, 1].
    """

    def __init__(self, *, value: Ratio) -> None:
        self.value = value

    def at(self, progress: float) -> float:
        return self.value

    @property
    def most(self) -> float:
        return self.value


class Linear(Schedule):
    """Changes by the same amount all the time.

    Args:
        start: the number at the beginning, in [0, 1].
        end: the number at the end, in [0, 1].
    """

    def __init__(self, *, start: Ratio, end: Ratio) -> None:
        self.start, self.end = start, end

    def at(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress

    @property
    def most(self) -> float:
        return max(self.start, self.end)


class Cosine(Schedule):
    """Half a wave of the cosine: changes slowly first and last.

    Args:
        start: the number at the beginning, in [0, 1].
        end: the number at the end, in [0, 1].
    """

    def __init__(self, *, start: Ratio, end: Ratio) -> None:
        self.start, self.end = start, end

    def at(self, progress: float) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))

    @property
    def most(self) -> float:
        return max(self.start, self.end)


class Piecewise(Schedule):
    """Given at some points.

    Args:
        points: pairs (progress, number), both in [0, 1], the progress rising from 0.
        between: between two points the number is that of the first (``step``), or goes straight to the second (``linear``). After
            the last point it stays.
    """

    def __init__(self, *, points: tuple[tuple[Ratio, Ratio], ...], between: Literal["step", "linear"]) -> None:
        places = [place for place, _ in points]
        if not places or places[0] != 0 or any(b <= a for a, b in itertools.pairwise(places)):
            raise user_error("schedule.points", f"must begin with progress 0 and rise: {[list(point) for point in points]}.")
        self._places, self._values = places, [value for _, value in points]
        self._between = between

    def at(self, progress: float) -> float:
        if self._between == "linear":
            return float(np.interp(progress, self._places, self._values))
        return self._values[int(np.searchsorted(self._places, progress, side="right")) - 1]

    @property
    def most(self) -> float:
        return max(self._values)


def ratio_at(ratio: float | Schedule, progress: float | None) -> float:
    """Return what a ratio is when a batch is made.

    Args:
        ratio: of a masking objective: a number, or a schedule.
        progress: as ``mlmx.data.batch.BatchContext`` has it.

    Raises:
        UserError: if it is a schedule and the progress is None.
    """
    return ratio.at(known_progress(progress, "objective")) if isinstance(ratio, Schedule) else ratio


def known_progress(progress: float | None, setting: str) -> float:
    """Return the progress for which a batch is made.

    Args:
        progress: as ``mlmx.data.batch.BatchContext`` has it.
        setting: what needs it, for the message.

    Raises:
        UserError: if it is None.
    """
    if progress is None:
        message = (
            "follows the progress of the training, and batches are made before it is known how much of a budget in seconds, FLOPs "
            "or supervised tokens they will find spent; set trainer.max_steps, max_epochs or max_tokens instead."
        )
        raise user_error(setting, message)
    return progress


def _number_or_schedule(_: Any, handler: Any) -> core_schema.CoreSchema:
    # A union would tell what is wrong with a number twice, once for each of its members.
    number = handler.generate_schema(Ratio)
    return core_schema.no_info_wrap_validator_function(
        lambda value, check: value if isinstance(value, Schedule) else check(value), number
    )


def _above_zero(value: float | Schedule) -> float | Schedule:
    if value == 0:
        raise PydanticCustomError("nothing_predicted", "nothing would be predicted by this objective")
    return value


ScheduledRatio = Annotated[float | Schedule, GetPydanticSchema(_number_or_schedule)]
"""A setting that is a number in [0, 1] or a schedule of one."""

PredictedRatio = Annotated[ScheduledRatio, AfterValidator(_above_zero)]
"""The same where nothing else is predicted: the number is not 0."""
