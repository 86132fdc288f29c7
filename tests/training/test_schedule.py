from __future__ import annotations

from itertools import pairwise

import pytest

from mlmx.training.budget import Budget, Spent
from mlmx.training.schedule import LearningRate

SCHEDULES = ["linear", "cosine", "constant", "inverse_sqrt", "wsd"]


def rates(schedule: str, costs: list[Spent], budget: Budget, **warmup) -> list[float]:
    """The learning rates of steps after which these are the costs."""
    warmup = {"warmup_ratio": None, "warmup_steps": None, "warmup_tokens": None, **warmup}
    rate = LearningRate(peak=1.0, schedule=schedule, decay_ratio=0.2 if schedule == "wsd" else None, **warmup)
    values, warmed = [], 0
    for before, after in pairwise([Spent(), *costs]):
        value, warmed = rate.at(budget, before, after, warmed)
        values.append(value)
    return values


def steps(schedule: str) -> list[float]:
    """Twenty steps, four of them warm-up."""
    costs = [Spent(steps=step, tokens=100 * step, seconds=0.5 * step) for step in range(1, 21)]
    values = rates(schedule, costs, Budget("steps", 20), warmup_ratio=0.2)
    # Where all steps cost the same, it is all one in what budget and warm-up are counted.
    for warmup in ({"warmup_steps": 4}, {"warmup_tokens": 400}):
        assert rates(schedule, costs, Budget("steps", 20), **warmup) == values
        assert rates(schedule, costs, Budget("seconds", 10), **warmup) == pytest.approx(values)
    assert rates(schedule, costs, Budget("seconds", 10), warmup_ratio=0.2) == pytest.approx(values)
    return values


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_rises_to_one_and_no_step_is_wasted(schedule):
    values = steps(schedule)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(0 < value <= 1 for value in values)
    assert all(after <= before for before, after in pairwise(values[4:]))


def test_values_by_hand():
    assert steps("linear")[12] == pytest.approx(0.5)
    assert steps("linear")[19] == pytest.approx(1 / 16)
    assert steps("cosine")[12] == pytest.approx(0.5)
    assert steps("inverse_sqrt")[19] == pytest.approx(0.5)
    assert steps("constant")[19] == 1
    assert steps("wsd")[15:] == pytest.approx([1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_uneven_costs_keep_the_rate_between_nothing_and_the_peak(schedule):
    seconds = [3.0, 3.1, 3.2, 7.0, 7.1, 9.9, 10.2]
    costs = [Spent(steps=i, seconds=value) for i, value in enumerate(seconds, start=1)]
    for warmup in ({"warmup_ratio": 0.0}, {"warmup_ratio": 0.31}, {"warmup_steps": 3}):
        values = rates(schedule, costs, Budget("seconds", 10.0), **warmup)
        assert all(0 < value <= 1 for value in values)
