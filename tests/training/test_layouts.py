"""Several processes, with whole and with divided weights, do what one does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_training import ToyObjective, toy_encoder, train

from tests.tiny import run_ranks
from tests.training.test_trainer import losses

pytestmark = pytest.mark.parametrize("layout", ["replicated", "sharded"])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_ranks(2, "tests.training.toy_training", folder)
    return folder


def test_losses_are_those_of_one_process(layout, two, tmp_path):
    train(tmp_path, max_steps=20)
    assert losses(two / layout / "losses") == pytest.approx(losses(tmp_path), rel=1e-6)


def test_in_double_precision_they_agree_to_the_last_digits(layout, two, tmp_path):
    train(tmp_path, objective=ToyObjective(toy_encoder()).double(), max_steps=20)
    assert losses(two / layout / "double") == pytest.approx(losses(tmp_path), rel=1e-12)


def test_a_process_without_rows_keeps_step(layout, two, tmp_path):
    train(tmp_path, max_steps=8, batch_examples=5)
    assert losses(two / layout / "uneven") == pytest.approx(losses(tmp_path), rel=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "stable_adamw"])
def test_six_and_six_steps_are_bitwise_twelve(layout, optimizer, two):
    folder = two / layout / optimizer
    assert len(losses(folder / "whole")) == 12
    assert losses(folder / "halves") == losses(folder / "whole")
    whole, halves = (load_file(folder / name / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(tensor, halves[name]) for name, tensor in whole.items())


def test_one_process_goes_on_where_two_stopped(layout, two, tmp_path):
    # A checkpoint is whole however the weights were divided, and batches and masks do not know how many processes there are.
    shutil.copytree(two / layout / "stopped", tmp_path / "stopped")
    assert len(losses(tmp_path / "stopped")) == 6
    _, result = train(tmp_path / "stopped")
    assert result["steps"] == 12
    train(tmp_path / "one")
    assert losses(tmp_path / "stopped") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
