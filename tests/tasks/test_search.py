from __future__ import annotations

import numpy as np
import pytest
import torch

from mlmx.data import progress
from mlmx.tasks import search
from mlmx.tasks.search import Largest, nearest, normalised


def embeddings(num: int, seed: int, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, width)).astype(np.float32)


@pytest.mark.parametrize("num_results", [1, 3, 40, 331, 1000])
@pytest.mark.parametrize("block", [(7, 100), (64, 13), (1024, 16384)])
def test_the_nearest_are_those_of_the_whole_matrix(num_results, block, monkeypatch):
    monkeypatch.setattr(search, "_CPU_BLOCK", block)
    queries, documents = embeddings(20, 0), embeddings(331, 1)
    found = nearest(queries, documents, num_results)
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    order = np.argsort(-scores, axis=1)[:, :num_results]
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1, -1])
def test_scores_that_rise_or_fall_from_block_to_block_are_found(factor, monkeypatch):
    # Rising, each block beats all before it; falling, none does after the first.
    monkeypatch.setattr(search, "_CPU_BLOCK", (4, 32))
    documents = factor * np.arange(1, 201, dtype=np.float32)[:, None]
    found = nearest(np.ones((3, 1), np.float32), documents, 10)
    expected = np.arange(199, 189, -1) if factor == 1 else np.arange(10)
    np.testing.assert_array_equal(found.indices, np.tile(expected, (3, 1)))


def test_equal_documents_are_all_found(monkeypatch):
    monkeypatch.setattr(search, "_CPU_BLOCK", (4, 8))
    documents = np.ones((50, 2), np.float32)
    documents[[3, 17, 41]] = 2
    found = nearest(np.ones((1, 2), np.float32), documents, 5)
    assert {3, 17, 41} == set(found.indices[0, :3].tolist())
    assert len(set(found.indices[0].tolist())) == 5
    np.testing.assert_array_equal(found.scores[0], [4, 4, 4, 2, 2])


def test_of_equal_documents_the_first_is_the_nearest(monkeypatch):
    monkeypatch.setattr(search, "_CPU_BLOCK", (4, 8))
    documents = np.ones((50, 2), np.float32)
    documents[[17, 3, 41, 42]] = 2
    found = nearest(np.ones((5, 2), np.float32), documents, 1)
    np.testing.assert_array_equal(found.indices, np.full((5, 1), 3))
    np.testing.assert_array_equal(found.scores, np.full((5, 1), 4))


def test_a_read_only_memory_map_is_searched(tmp_path):
    queries, documents = embeddings(3, 0), embeddings(50, 1)
    np.save(tmp_path / "index.npy", documents)
    mapped = np.load(tmp_path / "index.npy", mmap_mode="r")
    np.testing.assert_array_equal(nearest(queries, mapped, 5).indices, nearest(queries, documents, 5).indices)


def test_no_documents_are_no_results():
    assert nearest(embeddings(3, 0), embeddings(0, 1), 5).indices.shape == (3, 0)


def test_columns_that_were_never_seen_are_told():
    best = Largest(1, 3, torch.device("cpu"))
    best.update(slice(0, 1), 0, torch.tensor([[5.0, 7.0]]))
    assert sorted(best.columns[0].tolist()) == [-1, 0, 1]
    assert sorted(best.scores[0].tolist()) == [-np.inf, 5.0, 7.0]


def test_embeddings_that_are_not_finite_stop():
    with pytest.raises(FloatingPointError, match="1 of 2"):
        normalised(np.array([[1, np.nan], [1, 0]], np.float32))


def test_zero_embeddings_stay_zero():
    assert normalised(np.zeros((1, 3), np.float32)).tolist() == [[0, 0, 0]]


def test_a_long_search_says_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 1e-9)
    monkeypatch.setattr(search, "_CPU_BLOCK", (2, 4))
    nearest(embeddings(4, 0), embeddings(10, 1), 3)
    told = capsys.readouterr().err.splitlines()
    assert [line.split(",")[1].split()[1] for line in told] == ["8", "16", "20", "28", "36", "40"]
    assert told[0].startswith("search, pairs: 8 of about 40, 0:00:00 left")
