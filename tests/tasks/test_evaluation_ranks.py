"""Two processes judge as one does, to the bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tasks.evaluation_ranks import TASKS, encoder, judge, vectors
from tests.tiny import run_ranks


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_ranks(2, "tests.tasks.evaluation_ranks", folder)
    return folder


def test_vectors_are_those_of_one_process(two):
    alone = vectors(encoder())
    for rank in "01":
        assert np.load(two / rank / "vectors.npy").tobytes() == alone.tobytes()


@pytest.mark.parametrize("name", TASKS)
def test_scores_and_predictions_are_those_of_one_process(two, tmp_path, name):
    alone = judge(name, tmp_path)
    for rank in "01":
        assert (two / rank / f"{name}.json").read_text() == alone
    # What lies beside the scores, such as rankings and the index, is written once.
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    beside = two / f"beside-{name}"
    assert {path.relative_to(beside): path.read_bytes() for path in beside.rglob("*") if path.is_file()} == written
    assert bool(written) == (name in ("retrieval", "sentiment"))
