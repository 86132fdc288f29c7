"""Numbers that follow the progress of a training."""

from pathlib import Path

import pytest

from mlmx import listing
from mlmx.build import build, problems_of
from mlmx.errors import UserError
from mlmx.schedules import Constant, Cosine, Linear, Piecewise

CONF = Path(__file__).parents[1] / "conf" / "schedule"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_option_can_be_built_and_stays_between_0_and_1(name):
    schedule = build(listing.node_of(CONF / f"{name}.yaml"))
    assert all(0 <= schedule.at(step / 10) <= 1 for step in range(11))


def test_values():
    assert [Constant(value=0.4).at(p) for p in (0.0, 0.3, 1.0)] == [0.4, 0.4, 0.4]
    assert [Linear(start=0.5, end=0.25).at(p) for p in (0.0, 0.5, 1.0)] == [0.5, 0.375, 0.25]
    # The cosine of a third of pi is a half.
    assert [Cosine(start=0.0, end=1.0).at(p) for p in (0.0, 1 / 3, 0.5, 1.0)] == pytest.approx([0.0, 0.25, 0.5, 1.0])
    points = ((0.0, 0.25), (0.5, 0.75))
    assert [Piecewise(points=points, between="step").at(p) for p in (0.0, 0.49, 0.5, 1.0)] == [0.25, 0.25, 0.75, 0.75]
    assert [Piecewise(points=points, between="linear").at(p) for p in (0.0, 0.25, 0.5, 1.0)] == [0.25, 0.5, 0.75, 0.75]


@pytest.mark.parametrize("points", [[], [[0.1, 0.5]], [[0.0, 0.5], [0.0, 0.6]], [[0.0, 0.5], [0.7, 0.6], [0.6, 0.1]]])
def test_points_out_of_order_are_refused(points):
    with pytest.raises(UserError, match=r"here.points: must begin with progress 0 and rise"):
        build({"_target_": "mlmx.schedules.Piecewise", "points": points, "between": "step"}, where="here")


def test_numbers_out_of_range_are_told_at_their_place():
    (problem,) = problems_of({"_target_": "mlmx.schedules.Linear", "start": 1.5, "end": 0.0}, "objective.mask_ratio")
    assert problem.where == "objective.mask_ratio.start"
