from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_training import SETTINGS, ToyCollator, ToyObjective, ToyRows, toy_encoder, train

from mlmx import keyed
from mlmx.data.batch import Batch
from mlmx.data.plan import BatchPlan
from mlmx.errors import UserError
from mlmx.objectives.objective import Output
from mlmx.training.parallel import ProcessGroup
from mlmx.training.trainer import NonFiniteError, Stopped, Trainer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in metrics(folder)]


def same_state(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.state_dict().items())


def test_metrics_have_what_is_relied_on(tmp_path):
    _, result = train(tmp_path, max_steps=3)
    records = metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3]
    for record in records:
        # The weighted sum of the terms' means is the loss.
        assert record["loss"] == pytest.approx(record["loss/tokens"] + 0.5 * record["loss/rows"], rel=1e-6)
        assert 0 <= record["accuracy"] <= 1
        costs = {"tokens", "supervised_tokens", "seconds", "flops", "tokens_per_second", "peak_memory_bytes"}
        assert costs | {"learning_rate", "grad_norm", "epoch"} <= set(record)
        assert record["model_flops_utilisation"] is None  # nobody said what the device can do
        assert sum(share for name, share in record.items() if name.startswith("time/")) == pytest.approx(1, abs=1e-3)
    assert result["steps"] == 3
    for axis in ("tokens", "supervised_tokens", "seconds", "flops"):
        assert result[axis] == records[-1][axis] > 0
    assert result["final_loss"] == records[-1]["loss"]
    # At initialisation a prediction costs about the log of the number of classes.
    assert records[0]["loss/tokens"] == pytest.approx(math.log(64), rel=0.05)


def test_accumulation_changes_nothing(tmp_path):
    train(tmp_path / "whole", max_steps=20)
    # Rows have up to 33 tokens, so each is a micro-batch of its own: 1 x 8 against 8 x 1.
    train(tmp_path / "parts", max_steps=20, micro_batch_tokens=1)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    assert metrics(tmp_path / "parts")[-1]["tokens"] == metrics(tmp_path / "whole")[-1]["tokens"]


def test_in_double_precision_accumulation_agrees_to_the_last_digits(tmp_path):
    for name, micro_batch_tokens in (("whole", None), ("parts", 1)):
        objective = ToyObjective(toy_encoder()).double()
        train(tmp_path / name, objective=objective, max_steps=20, micro_batch_tokens=micro_batch_tokens)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-12)


def test_padded_rows_train_like_packed_ones(tmp_path):
    padded = ToyObjective(toy_encoder())
    padded.encoder.packed = False
    padded.encoder.base.set_attn_implementation("sdpa")
    train(tmp_path / "packed", max_steps=20)
    train(tmp_path / "padded", objective=padded, max_steps=20)
    assert losses(tmp_path / "padded") == pytest.approx(losses(tmp_path / "packed"), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning", "ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize(("setting", "dropout"), [("activation_checkpointing", 0.1), ("compile", 0.0)])
def test_how_layers_are_run_changes_nothing(tmp_path, setting, dropout, monkeypatch):
    # The compiler itself takes long; that what it makes is right is for tests of the encoder.
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *given, **settings: compiled(*given, **{**settings, "backend": "eager"}))
    plain, _ = train(tmp_path / "plain", dropout=dropout)
    other, _ = train(tmp_path / "other", dropout=dropout, **{setting: True})
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    assert plain.state_dict().keys() == other.state_dict().keys()
    efficiency = [line["packing_efficiency"] for line in metrics(tmp_path / "other")]
    assert all(part < 1 for part in efficiency) == (setting == "compile")
    if setting == "activation_checkpointing":
        assert efficiency == [1.0] * 12


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_workers_change_nothing(tmp_path):
    none, _ = train(tmp_path / "none")
    four, _ = train(tmp_path / "four", num_workers=4)
    assert losses(tmp_path / "four") == losses(tmp_path / "none")
    assert same_state(none, four)


def test_accumulation_gives_the_same_first_gradient(tmp_path, monkeypatch):
    gradients = []

    class Recorded(ToyObjective):
        def after_step(self, step: int) -> None:
            gradients.append(torch.cat([p.grad.flatten() for p in self.parameters()]))

    for name, micro_batch_tokens in (("whole", None), ("parts", 1)):
        train(
            tmp_path / name,
            objective=Recorded(toy_encoder()),
            max_steps=1,
            micro_batch_tokens=micro_batch_tokens,
            max_grad_norm=None,
        )
    whole, parts = gradients
    assert (whole - parts).norm() <= 1e-6 * whole.norm()
    assert whole.norm() > 0.1


class StopAfter(ProcessGroup):
    """Asks for a stop in the step of this number."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.gathered = 0

    def gather(self, value):
        self.gathered += 1
        # Twice per step: counts, then reports.
        if self.gathered == 2 * self.step - 1:
            self.request_stop()
        return super().gather(value)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_six_and_six_steps_are_bitwise_twelve(tmp_path, num_workers, dropout):
    whole, whole_result = train(tmp_path / "whole", dropout=dropout)
    with pytest.raises(Stopped, match="after step 6 of 12"):
        train(tmp_path / "halves", dropout=dropout, num_workers=num_workers, processes=StopAfter(6))
    assert len(metrics(tmp_path / "halves")) == 6
    halves, result = train(tmp_path / "halves", dropout=dropout, num_workers=num_workers)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    assert same_state(whole, halves)
    assert halves.steps_seen == 12
    assert {key: result[key] for key in ("steps", "tokens", "final_loss")} == {
        key: whole_result[key] for key in ("steps", "tokens", "final_loss")
    }


def test_metrics_after_the_checkpoint_are_not_logged_twice(tmp_path):
    class Crash(ToyObjective):
        def forward(self, batch: Batch) -> Output:
            if batch.step == 7:
                raise RuntimeError("power cut")
            return super().forward(batch)

    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, objective=Crash(toy_encoder()), checkpoint_every_steps=4)
    assert len(metrics(tmp_path)) == 7
    train(tmp_path, checkpoint_every_steps=4)
    assert [record["step"] for record in metrics(tmp_path)] == list(range(1, 13))


def test_damaged_checkpoint_is_passed_over_and_named(tmp_path, caplog):
    whole, _ = train(tmp_path / "whole")
    train(tmp_path / "damaged", checkpoint_every_steps=4, keep_checkpoints=3)
    checkpoints = sorted((tmp_path / "damaged" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-00000004", "step-00000008", "step-00000012"]
    model = checkpoints[-1] / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-5] ^= 1
    model.write_bytes(content)
    again, _ = train(tmp_path / "damaged", checkpoint_every_steps=4, keep_checkpoints=3)
    assert "step-00000012 is passed over: model.safetensors is damaged" in caplog.text
    assert "after step 8" in caplog.text
    assert same_state(whole, again)
    # The damaged one is replaced by a good one.
    caplog.clear()
    train(tmp_path / "damaged", checkpoint_every_steps=4)
    assert "passed over" not in caplog.text


def culprit_of_step_3() -> tuple[int, int]:
    # A row of the third batch, and the key it has in the first epoch.
    plan = BatchPlan(ToyRows().lengths, seed=0, batch_examples=8, max_steps=12)
    row = int(plan.rows_of(2)[0][5])
    return row, int(keyed.row_keys(seed=0, epoch=0, row_ids=np.array([row]))[0])


class Broken(ToyObjective):
    """Its loss is not a number on one row."""

    def forward(self, batch: Batch) -> Output:
        output = super().forward(batch)
        factor = math.nan if culprit_of_step_3()[1] in batch.keys.tolist() else 1.0
        return Output({**output.terms, "rows": output.terms["rows"] * factor}, output.metrics)


# Like a GPU, a device may be a step behind the process that tells it what to do.
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "stable_adamw"])
def test_loss_that_is_not_finite_stops_before_the_step_and_names_the_row(tmp_path, asynchronous, optimizer):
    row, key = culprit_of_step_3()
    objective, settings = Broken(toy_encoder()), {"micro_batch_tokens": 1, "optimizer": optimizer}
    with pytest.raises(NonFiniteError, match=rf"loss of step 3 is not finite, on rows {row}\. The batch is saved"):
        train(tmp_path / "broken", objective=objective, processes=ProcessGroup(asynchronous=asynchronous), **settings)
    (saved,) = (tmp_path / "broken" / "nonfinite").iterdir()
    assert load_file(saved)["keys"].tolist() == [key]
    two_steps = ToyObjective(toy_encoder())
    with pytest.raises(Stopped):
        train(tmp_path / "two", objective=two_steps, processes=StopAfter(2), **settings)
    assert all(torch.equal(*pair) for pair in zip(objective.parameters(), two_steps.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "stable_adamw"])
def test_a_step_that_is_not_finite_can_be_skipped(tmp_path, optimizer):
    states = {}
    for asynchronous in (False, True):
        folder = tmp_path / str(asynchronous)
        objective, result = train(
            folder,
            objective=Broken(toy_encoder()),
            processes=ProcessGroup(asynchronous=asynchronous),
            on_nonfinite="skip",
            optimizer=optimizer,
            max_steps=4,
        )
        assert result["skipped_steps"] == 1
        assert [line["skipped_steps"] for line in metrics(folder)] == [0, 0, 1, 1]
        assert all(bool(parameter.isfinite().all()) for parameter in objective.parameters())
        states[asynchronous] = objective
    assert same_state(states[False], states[True])


def test_numbers_that_are_read_late_are_the_same(tmp_path):
    train(tmp_path / "at once")
    train(tmp_path / "late", processes=ProcessGroup(asynchronous=True))
    assert losses(tmp_path / "late") == losses(tmp_path / "at once")


def test_micro_batches_that_do_not_fit_are_halved(tmp_path, caplog):
    class Large(ToyObjective):
        def forward(self, batch: Batch) -> Output:
            if batch.num_tokens > 70:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(batch)

    train(tmp_path / "whole", max_steps=6)
    train(tmp_path / "halved", objective=Large(toy_encoder()), max_steps=6)
    assert losses(tmp_path / "halved") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    assert "goes on with micro_batch_tokens=" in caplog.text


def test_micro_batches_are_halved_down_to_the_longest_row(tmp_path):
    longest = int(ToyRows().lengths.max())

    class Large(ToyObjective):
        def forward(self, batch: Batch) -> Output:
            if batch.num_tokens > longest:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(batch)

    train(tmp_path / "whole", max_steps=2, validation_rows=4)
    # Half of it would not hold the longest row.
    settings = {"micro_batch_tokens": 2 * longest - 1, "max_steps": 2, "validation_rows": 4}
    train(tmp_path / "halved", objective=Large(toy_encoder()), **settings)
    assert losses(tmp_path / "halved") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_coupled_batches_that_do_not_fit_are_told_at_once(tmp_path):
    class Coupled(ToyObjective):
        batch_coupled = True

        def forward(self, batch: Batch) -> Output:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="batch_examples: the memory of the device is too small"):
        train(tmp_path, objective=Coupled(toy_encoder()))


def test_micro_batches_cannot_be_smaller_than_a_row(tmp_path):
    class TooLarge(ToyObjective):
        def forward(self, batch: Batch) -> Output:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="they cannot be smaller"):
        train(tmp_path, objective=TooLarge(toy_encoder()))


def test_checkpoints_by_the_clock(tmp_path):
    train(tmp_path, checkpoint_every_minutes=1e-9, keep_checkpoints=3)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000010", "step-00000011", "step-00000012",
    ]  # fmt: skip


def test_no_steps_leave_the_weights_alone(tmp_path):
    objective, result = train(tmp_path, max_steps=0)
    assert same_state(objective, ToyObjective(toy_encoder()))
    assert result["steps"] == 0
    assert result["final_loss"] is None


def test_epochs_are_a_budget_too(tmp_path):
    _, result = train(tmp_path, max_steps=None, max_epochs=2)
    assert result["steps"] == 10  # 40 rows in batches of 8, twice
    assert result["num_epochs"] == 2


def test_seeds_give_different_batches(tmp_path):
    train(tmp_path / "a", max_steps=2)
    train(tmp_path / "b", max_steps=2, seed=1)
    assert losses(tmp_path / "a") != losses(tmp_path / "b")


def test_contradictions_are_reported_together():
    wrong = {"max_epochs": 1, "batch_tokens": 5, "batch_warmup_tokens": 9, "warmup_steps": 50, "schedule": "wsd"}
    with pytest.raises(UserError) as caught:
        Trainer(**{**SETTINGS, **wrong})
    assert [problem.where for problem in caught.value.problems] == [
        "trainer.max_steps",
        "trainer.batch_tokens",
        "trainer.batch_warmup_tokens",
        "trainer.warmup_ratio",
        "trainer.warmup_steps",
        "trainer.decay_ratio",
    ]


def test_coupled_batches_are_not_cut_up(tmp_path):
    class Coupled(ToyObjective):
        batch_coupled = True

    whole, _ = train(tmp_path / "whole", objective=Coupled(toy_encoder()), max_steps=2)
    small, _ = train(tmp_path / "small", objective=Coupled(toy_encoder()), max_steps=2, micro_batch_tokens=1)
    assert same_state(whole, small)
    with pytest.raises(UserError, match=r"trainer.batch_examples: 1 examples a batch, .*: this objective compares the examples"):
        train(tmp_path / "one", objective=Coupled(toy_encoder()), max_steps=1, batch_examples=1)
    with pytest.raises(UserError, match=r"trainer.batch_tokens: 0.\d+ examples a batch"):
        train(tmp_path / "two", objective=Coupled(toy_encoder()), max_steps=1, batch_examples=None, batch_tokens=2)


def test_a_step_without_predictions_is_told_once(tmp_path, caplog):
    class Nothing(ToyCollator):
        def __call__(self, rows, context):
            batch = super().__call__(rows, context)
            return replace(batch, counts=dict.fromkeys(batch.counts, 0))

    class Idle(ToyObjective):
        def collator(self):
            return Nothing()

    train(tmp_path, objective=Idle(toy_encoder()), max_steps=3)
    assert [record.getMessage() for record in caplog.records] == [
        "step 1 has nothing to predict, so that nothing is learned from it; told once"
    ]


def test_bfloat16_trains(tmp_path):
    _, result = train(tmp_path, precision="bfloat16", max_steps=2)
    assert math.isfinite(result["final_loss"])
