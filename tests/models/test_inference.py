"""An evaluation that is killed, whenever, goes on with the next batch, and gives what it would have given."""

from __future__ import annotations

import os

import numpy as np
import pytest

from mlmx.data import arrays
from mlmx.data.rows import RowDataset
from mlmx.models.inference import batches_by_length, by_batch, results_saved
from mlmx.stage import StageDir
from mlmx.training.worker import origin_of_results
from tests.masking.synthetic_rows import make_rows, random_sizes

SIZES = random_sizes(40, 1, 6)
BATCH_TOKENS = 24


class Killed(BaseException):
    """What no code catches."""


class Rows(RowDataset):
    def __init__(self, number: int = 40, shift: int = 0, one_word: bool = False):
        self.sizes = SIZES[:number]
        self.shift, self.one_word = shift, one_word
        self.lengths = np.diff(make_rows(self.sizes).cu_seqlens).astype(np.int32)
        self.num_truncated = {}

    def take(self, indices):
        rows = make_rows([self.sizes[i] for i in indices.tolist()])
        rows.input_ids[:] += self.shift
        rows.row_ids[:] = indices
        if self.one_word:
            rows.words[rows.words >= 0] = 0
        return rows


class Judge:
    """Computes something of rows, and is killed after some batches."""

    def __init__(self, rows, *, killed_after: int | None = None, shape=(2,)):
        self.rows, self.killed_after, self.shape = rows, killed_after, shape
        self.num_batches = 0

    def __call__(self, indices):
        if self.num_batches == self.killed_after:
            raise Killed
        self.num_batches += 1
        return np.random.default_rng(indices + self.rows.shift).normal(size=(len(indices), *self.shape)).astype(np.float32)


def results(judge, settings=()):
    found = {}
    for indices, of_batch in by_batch(judge.rows, judge, batch_tokens=BATCH_TOKENS, what="judge", settings=settings):
        found |= zip(indices.tolist(), of_batch, strict=True)
    return np.stack([found[i] for i in range(len(judge.rows))])


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(arrays, "_SECONDS_BETWEEN_SAVES", 0.0)


def killed(folder, after, identity="x", **settings):
    with pytest.raises(Killed), results_saved(folder, identity):
        results(Judge(Rows(), killed_after=after), **settings)


NUM_BATCHES = len(batches_by_length(Rows().lengths, BATCH_TOKENS))


@pytest.mark.parametrize("after", [0, 1, NUM_BATCHES // 2, NUM_BATCHES - 1])
def test_no_batch_is_computed_twice(tmp_path, after, caplog):
    assert NUM_BATCHES > 8
    expected = results(Judge(Rows()))
    killed(tmp_path / "results", after)
    again = Judge(Rows())
    with results_saved(tmp_path / "results", "x"):
        np.testing.assert_array_equal(results(again), expected)
    assert again.num_batches == NUM_BATCHES - after
    assert caplog.messages == ([f"judge: goes on after {after} of {NUM_BATCHES} batches"] if after else [])
    assert list(tmp_path.iterdir()) == []


def test_killed_again_and_again(tmp_path):
    for _ in range(3):
        killed(tmp_path / "results", 2)
    last = Judge(Rows())
    with results_saved(tmp_path / "results", "x"):
        np.testing.assert_array_equal(results(last), results(Judge(Rows())))
    assert last.num_batches == NUM_BATCHES - 6


@pytest.mark.parametrize(
    ("rows", "settings", "identity"),
    [(Rows(shift=1), (), "x"), (Rows(one_word=True), (), "x"), (Rows(), ("mean",), "x"), (Rows(), (), "another encoder")],
    ids=["tokens", "words", "settings", "identity"],
)
def test_results_of_anything_else_are_not_taken(tmp_path, rows, settings, identity):
    killed(tmp_path / "results", 3)
    again = Judge(rows)
    with results_saved(tmp_path / "results", identity):
        np.testing.assert_array_equal(results(again, settings), results(Judge(rows)))
    assert again.num_batches == NUM_BATCHES


def test_results_of_an_encoder_made_anew_are_not_taken(tmp_path):
    encoder, judged = StageDir(tmp_path / "pretrain"), StageDir(tmp_path / "eval")
    judged.write_config({"fingerprint": "f", "spec": {"task": "t"}, "parents": {"encoder": "pretrain"}})

    def origin(weights: bytes) -> str:
        encoder.path.mkdir(exist_ok=True)
        encoder.model_path.write_bytes(weights)
        encoder.write_result({})
        return origin_of_results(judged, "cpu")

    assert origin(b"1") == origin(b"1") != origin(b"2")


def test_several_passes_of_any_shape_and_one_that_is_left_out(tmp_path):
    def passes(killed_after=None):
        first = Judge(Rows(), shape=())
        second = Judge(Rows(shift=2), shape=(3, 1), killed_after=killed_after)
        return results(first), results(second), first.num_batches, second.num_batches

    expected = passes()
    with pytest.raises(Killed), results_saved(tmp_path / "results", "x"):
        passes(killed_after=3)
    second = Judge(Rows(shift=2), shape=(3, 1))
    with results_saved(tmp_path / "results", "x"):
        # The first pass left something of its own behind, as an index, and is not made again.
        np.testing.assert_array_equal(results(second), expected[1])
    assert second.num_batches == NUM_BATCHES - 3


def test_what_is_damaged_is_computed_again(tmp_path):
    killed(tmp_path / "results", 5)
    path = tmp_path / "results.partial" / "data.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    again = Judge(Rows())
    with results_saved(tmp_path / "results", "x"):
        np.testing.assert_array_equal(results(again), results(Judge(Rows())))
    assert NUM_BATCHES - 5 < again.num_batches < NUM_BATCHES
