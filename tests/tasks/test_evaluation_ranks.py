"""Two processes judge as one does, to the bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mlmx.data import arrays
from mlmx.data.saved_results import SavedResults
from mlmx.models import inference
from mlmx.models.pooling import encode
from mlmx.tasks.texts import text_rows
from tests.tasks.evaluation_ranks import BATCH_TOKENS, TASKS, encoder, judge, texts, vectors
from tests.tiny import run_ranks


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    leave_half(folder / "results")
    run_ranks(2, "tests.tasks.evaluation_ranks", folder)
    return folder


def test_vectors_are_those_of_one_process(two):
    alone = vectors(encoder())
    for rank in "01":
        assert np.load(two / rank / "vectors.npy").tobytes() == alone.tobytes()


def leave_half(folder: Path) -> None:
    """Leave what an evaluation by one process has saved when it is killed halfway."""
    saved = SavedResults(folder, "x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_SECONDS_BETWEEN_SAVES", 0.0)
        patch.setattr(inference, "_saved", saved)
        own = encoder()
        rows = text_rows(own, texts()[:100], max_length=32, task="x", what="texts")
        encode(own, rows, layer=1, pooling="mean", batch_tokens=BATCH_TOKENS)
    saved.close()


def test_two_processes_go_on_with_what_one_has_saved(two):
    alone = vectors(encoder())
    for rank in "01":
        assert np.load(two / rank / "resumed.npy").tobytes() == alone.tobytes()
    assert not (two / "results.partial").exists()


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
