from __future__ import annotations

import json
import time

import pytest
import torch
from toy_training import SETTINGS, ToyObjective, toy_encoder, train

from mlmx.data.batch import Batch
from mlmx.errors import UserError
from mlmx.objectives.objective import Output
from mlmx.training.budget import Budget, Spent
from mlmx.training.parallel import ProcessGroup
from mlmx.training.trainer import Stopped, Trainer
from tests.training.test_trainer import StopAfter, losses, metrics, same_state

COSTS = ("steps", "tokens", "supervised_tokens", "flops")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Seen(ToyObjective):
    """Remembers the progress of its batches."""

    def __init__(self) -> None:
        super().__init__(toy_encoder())
        self.progress: list[float] = []

    def forward(self, batch: Batch) -> Output:
        self.progress.append(batch.progress)
        return super().forward(batch)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_equal_on_every_axis(tmp_path, num_workers):
    # What six steps cost is a budget for six steps, on whatever axis; one more unit of it is one for seven.
    _, six = train(tmp_path / "six", max_steps=6, schedule="constant")
    _, seven = train(tmp_path / "seven", max_steps=7, schedule="constant")
    for axis in ("tokens", "supervised_tokens", "flops"):
        objective = Seen()
        budget = {"max_steps": None, "schedule": "constant", "warmup_ratio": None, "warmup_steps": 1, "num_workers": num_workers}
        _, result = train(tmp_path / axis, objective=objective, **budget, **{f"max_{axis}": six[axis]})
        assert {name: result[name] for name in COSTS} == {name: six[name] for name in COSTS}
        assert objective.progress[0] == 0
        assert all(0 < progress < 1 for progress in objective.progress[1:])
        assert objective.progress == sorted(objective.progress)
        _, result = train(tmp_path / f"more-{axis}", **budget, **{f"max_{axis}": six[axis] + 1})
        assert {name: result[name] for name in COSTS} == {name: seven[name] for name in COSTS}


@pytest.mark.parametrize("axis", ["tokens", "supervised_tokens", "flops"])
def test_resuming_goes_on_with_the_rest_of_the_budget(tmp_path, axis):
    _, twelve = train(tmp_path / "twelve")
    settings = {"max_steps": None, f"max_{axis}": twelve[axis], "warmup_ratio": None, "warmup_tokens": 300}
    whole, whole_result = train(tmp_path / "whole", **settings)
    # Once in the middle of the warm-up, once after it.
    for stop in (1, 7):
        with pytest.raises(Stopped, match=f"after step {stop} "):
            train(tmp_path / f"{stop}", processes=StopAfter(stop), **settings)
        resumed, result = train(tmp_path / f"{stop}", **settings)
        assert same_state(whole, resumed)
        assert losses(tmp_path / f"{stop}") == losses(tmp_path / "whole")
        assert [line["learning_rate"] for line in metrics(tmp_path / f"{stop}")] == [
            line["learning_rate"] for line in metrics(tmp_path / "whole")
        ]
        assert {name: result[name] for name in COSTS} == {name: whole_result[name] for name in COSTS}


class Slow(ToyObjective):
    """Takes a tenth of a second longer for each step."""

    def after_step(self, step: int) -> None:
        time.sleep(0.1)


def test_seconds_are_a_budget_and_are_carried_over_checkpoints(tmp_path):
    settings = {"max_steps": None, "max_seconds": 2.0}
    with pytest.raises(Stopped, match=r"after step 3 \(\d+% of max_seconds=2\)"):
        train(tmp_path, objective=Slow(toy_encoder()), processes=StopAfter(3), **settings)
    time.sleep(2.0)  # not training
    _, result = train(tmp_path, objective=Slow(toy_encoder()), **settings)
    assert result["steps"] > 3
    assert metrics(tmp_path)[-2]["seconds"] < 2.0 <= result["seconds"]


class OtherClock(ProcessGroup):
    """The second of two ranks, whose main process says that so many seconds have passed."""

    def __init__(self, seconds: list[float]) -> None:
        super().__init__()
        self.seconds = seconds

    def gather(self, value):
        return [{**value, "seconds": self.seconds.pop(0)} if isinstance(value, dict) and "seconds" in value else value]


def test_the_main_process_clock_decides_for_all_ranks(tmp_path):
    _, result = train(tmp_path, processes=OtherClock([10.0, 20.0, 99.0, 101.0, 200.0]), max_steps=None, max_seconds=100)
    assert result["steps"] == 4
    assert result["seconds"] == 101.0


def test_progress_by_hand():
    spent = Spent(steps=3, tokens=300, seconds=1.5)
    assert Budget("steps", 12).progress(spent) == 3 / 12
    assert Budget("seconds", 6.0).progress(spent) == 0.25
    assert Budget("seconds", 1.0).progress(spent) == 1.0
    assert Budget("seconds", 1.0).is_spent(spent)
    assert Budget("steps", 0).progress(Spent()) == 1.0
    assert Budget("steps", 12).told(spent) == "step 3 of 12"
    assert Budget("seconds", 6.0).told(spent) == "step 3 (25% of max_seconds=6)"


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_steps": None},
        {"max_flops": 1e9},
        {"max_steps": None, "max_seconds": 5.0, "max_tokens": 5},
    ],
)
def test_exactly_one_budget(wrong):
    with pytest.raises(UserError, match="set exactly one of max_steps, max_epochs, max_tokens, max_supervised_tokens"):
        Trainer(**{**SETTINGS, **wrong})


def test_batches_that_grow_change_the_training(tmp_path):
    train(tmp_path / "full", max_steps=4)
    train(tmp_path / "growing", max_steps=4, batch_warmup_tokens=400, batch_warmup_start_ratio=0.25)
    sizes = [json.loads(line)["tokens"] for line in (tmp_path / "growing" / "metrics.jsonl").read_text().splitlines()]
    assert sizes[0] < metrics(tmp_path / "full")[0]["tokens"] / 2
    assert losses(tmp_path / "growing") != losses(tmp_path / "full")


def test_utilisation_is_a_part_of_what_the_device_can_do(tmp_path):
    train(tmp_path, processes=ProcessGroup(peak_flops=1e9), max_steps=12, log_every_steps=12)
    first, last = metrics(tmp_path)
    rate = (last["flops"] - first["flops"]) / (last["seconds"] - first["seconds"])
    # Seconds are written to the millisecond.
    assert last["model_flops_utilisation"] == pytest.approx(rate / 1e9, rel=0.05)
