from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import SETTINGS, Stopping, ToyObjective, ToyRows, toy_encoder, train

from mlmx import keyed
from mlmx.data.batch import BatchContext
from mlmx.errors import UserError
from mlmx.training.parallel import ProcessGroup
from mlmx.training.trainer import Stopped, Trainer
from mlmx.training.validation import HeldOut
from tests.training.test_trainer import metrics, same_state

VALIDATION = {"validation_rows": 7, "validate_every_steps": 3, "dropout": 0.1}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def validation_losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["validation/loss"] for line in metrics(folder) if "validation/loss" in line}


def test_rows_that_are_held_out_are_never_trained_on(tmp_path):
    seen: set[int] = set()

    class Watching(ToyRows):
        def take(self, indices):
            seen.update(indices.tolist())
            return super().take(indices)

    trainer = Trainer(**{**SETTINGS, **VALIDATION, "max_steps": None, "max_epochs": 3})
    loop = trainer.prepare(ToyObjective(toy_encoder()), Watching(), None, seed=0, processes=ProcessGroup())
    for step in range(loop.plan.num_steps):
        loop.batches[step]
    held_out = set(HeldOut(40, 7, seed=0).rows.tolist())
    assert len(held_out) == 7
    assert seen == set(range(40)) - held_out


def test_rows_are_held_out_as_often_as_they_are_seen():
    weights = np.repeat([0.0, 1.0, 3.0], 1000)
    rows = HeldOut(3000, 400, seed=0, weights=weights).rows
    assert len(set(rows.tolist())) == 400
    none, once, thrice = np.bincount(rows // 1000, minlength=3)
    assert none == 0
    # A quarter of those that are drawn first, a little more as the others run out.
    assert 80 < once < 150
    assert thrice == 400 - once
    same = HeldOut(3000, 400, seed=0, weights=np.ones(3000)).rows
    assert same.tolist() == HeldOut(3000, 400, seed=0).rows.tolist()
    few = ToyRows()
    few.weights = np.repeat([0.0, 1.0], [30, 10])
    trainer = Trainer(**{**SETTINGS, "validation_rows": 10})
    with pytest.raises(UserError, match="10 of 10 rows would leave none"):
        trainer.prepare(ToyObjective(toy_encoder()), few, None, seed=0, processes=ProcessGroup())


def test_the_loss_is_that_of_the_rows_without_dropout(tmp_path):
    objective, result = train(tmp_path, **VALIDATION)
    losses = validation_losses(tmp_path)
    assert list(losses) == [3, 6, 9, 12]
    rows = HeldOut(40, 7, seed=0).rows
    keys = keyed.row_keys(seed=0, epoch=0, row_ids=rows)
    batch = objective.collator()(ToyRows().take(rows), BatchContext(keys=keys))
    with torch.no_grad():
        terms = objective(batch).terms
    expected = sum(weight * float(terms[name]) / batch.counts[name] for name, weight in objective.weights.items())
    assert losses[12] == pytest.approx(expected, rel=1e-6)
    assert result["validation_loss"] == losses[12]


def test_what_compares_examples_is_judged_on_all_of_them_at_once(tmp_path):
    class Coupled(ToyObjective):
        batch_coupled = True

        def forward(self, batch):
            if not self.training:
                validated.append(batch.num_rows)
            return super().forward(batch)

    validated = []
    settings = {**VALIDATION, "batch_examples": 4, "micro_batch_tokens": 1, "max_steps": 3}
    train(tmp_path, objective=Coupled(toy_encoder()), **settings)
    assert validated == [7]


def test_validating_changes_nothing_of_the_training(tmp_path):
    often, _ = train(tmp_path / "often", **VALIDATION)
    never, _ = train(tmp_path / "never", **{**VALIDATION, "validate_every_steps": None})
    assert same_state(often, never)
    assert list(validation_losses(tmp_path / "never")) == [12]


def test_the_best_weights_survive_and_their_checkpoint_stays(tmp_path):
    # So fast that it gets worse.
    constant = {"learning_rate": 0.5, "schedule": "constant", "warmup_ratio": None, "warmup_steps": 0}
    settings = {**VALIDATION, **constant, "validate_every_steps": 1, "keep_checkpoints": 1}
    best, result = train(tmp_path / "best", **settings, export="best", checkpoint_every_steps=1)
    losses = validation_losses(tmp_path / "best")
    step = min(losses, key=losses.__getitem__)
    assert step < 12
    assert result["exported_step"] == step
    assert result["validation_loss"] == losses[step]
    kept = sorted(path.name for path in (tmp_path / "best" / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}", "step-00000012"]
    until_then = ToyObjective(toy_encoder())
    train(tmp_path / "until", objective=until_then, **{**settings, "max_steps": step})
    assert same_state(best, until_then)


def test_the_best_is_remembered_over_a_stop(tmp_path):
    settings = {**VALIDATION, "learning_rate": 0.5, "schedule": "constant", "export": "best"}
    whole, result = train(tmp_path / "whole", **settings)
    processes = ProcessGroup()
    with pytest.raises(Stopped):
        train(tmp_path / "halves", objective=Stopping(toy_encoder(), processes), processes=processes, **settings)
    halves, again = train(tmp_path / "halves", **settings)
    assert same_state(whole, halves)
    for name in ("exported_step", "validation_loss"):
        assert again[name] == result[name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validate_every_steps": 5}, "needs validation_rows"),
        ({"export": "best"}, "the best of what"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Trainer(**{**SETTINGS, **settings})


def test_something_must_be_left_to_train_on(tmp_path):
    with pytest.raises(UserError, match="40 of 40 rows would leave none"):
        train(tmp_path, validation_rows=40)
