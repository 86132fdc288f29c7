from __future__ import annotations

import logging

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from mlmx.tasks import search
from mlmx.tasks.mining import Matches, best_matches, mine, neighbour_means
from mlmx.tasks.search import normalised


def embeddings(num: int, seed: int, *, shift: float = 0.3) -> np.ndarray:
    # A common component, as sentence embeddings have it, keeps the cosines mostly positive.
    return normalised(np.random.default_rng(seed).normal(shift, 1, (num, 16)).astype(np.float32))


def brute_force(source: np.ndarray, target: np.ndarray, margin: str, k: int) -> np.ndarray:
    """The whole matrix of margin scores, as the paper's equations write them, one pair at a time."""
    scores = np.empty((len(source), len(target)))
    near = NearestNeighbors(metric="cosine", algorithm="brute")
    forward = 1 - near.fit(target).kneighbors(source, k)[0]
    backward = 1 - near.fit(source).kneighbors(target, k)[0]
    for i in range(len(source)):
        for j in range(len(target)):
            cosine = float(source[i].astype(float) @ target[j].astype(float))
            neighbourhood = forward[i].sum() / (2 * k) + backward[j].sum() / (2 * k)
            scores[i, j] = {"ratio": cosine / neighbourhood, "distance": cosine - neighbourhood, "absolute": cosine}[margin]
    return scores


@pytest.mark.parametrize("margin", ["ratio", "distance", "absolute"])
@pytest.mark.parametrize("block", [(7, 9), (1024, 16384)])
def test_best_matches_are_those_of_an_independent_matrix(margin, block, monkeypatch):
    monkeypatch.setattr(search, "_CPU_BLOCK", block)
    source, target = embeddings(40, 0), embeddings(53, 1)
    matches = best_matches(source, target, margin=margin, num_neighbors=4)
    scores = brute_force(source, target, margin, 4)
    np.testing.assert_array_equal(matches.forward, scores.argmax(axis=1))
    np.testing.assert_array_equal(matches.backward, scores.argmax(axis=0))
    np.testing.assert_allclose(matches.forward_scores, scores.max(axis=1), rtol=1e-4)
    np.testing.assert_allclose(matches.backward_scores, scores.max(axis=0), rtol=1e-4)


def test_ratio_margin_by_hand():
    # Cosines: a-x 1, a-y 0.6, b-x 0.6, b-y 1 x (0.6*0.6 + 0.8*0.8) = 1. With k=2, every neighbourhood's mean is 0.8.
    source = np.array([[1, 0], [0.6, 0.8]], np.float32)
    matches = best_matches(source, source.copy(), margin="ratio", num_neighbors=2)
    assert matches.forward.tolist() == matches.backward.tolist() == [0, 1]
    # 2k cos / (sum of a's k + sum of x's k) = 4 * 1 / (1.6 + 1.6)
    np.testing.assert_allclose(matches.forward_scores, [1.25, 1.25], rtol=1e-6)


def test_more_neighbours_than_sentences_are_all_sentences():
    source, target = embeddings(3, 0), embeddings(5, 1)
    forward, backward = neighbour_means(source, target, 100)
    np.testing.assert_allclose(forward, (source @ target.T).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(backward, (source @ target.T).mean(axis=0), rtol=1e-5)


def test_margin_demotes_a_sentence_that_is_close_to_everything():
    # Source i is its translation, axis i, and more of a common axis, which is the hub: cosines 0.64 and 0.77.
    axes = np.eye(5, dtype=np.float32)
    source, target = normalised(axes[1:] + 1.2 * axes[0]), axes
    assert best_matches(source, target, margin="absolute", num_neighbors=2).forward.tolist() == [0, 0, 0, 0]
    for margin in ("ratio", "distance"):
        assert best_matches(source, target, margin=margin, num_neighbors=2).forward.tolist() == [1, 2, 3, 4]


MATCHES = Matches(
    forward=np.array([0, 0, 2]),
    forward_scores=np.array([1.5, 1.2, 1.1], np.float32),
    backward=np.array([0, 1, 1]),
    backward_scores=np.array([1.5, 1.0, 1.3], np.float32),
)


@pytest.mark.parametrize(
    ("retrieval", "expected"),
    [
        ("forward", [(0, 0), (1, 0), (2, 2)]),
        ("backward", [(0, 0), (1, 2), (1, 1)]),
        ("intersection", [(0, 0)]),
        # By score: (0,0) 1.5, again (0,0), (1,2) 1.3, then (1,0), (2,2) and (1,1) name sentences already used.
        ("max", [(0, 0), (1, 2)]),
    ],
)
def test_retrieval_modes_by_hand(retrieval, expected):
    mined = mine(MATCHES, retrieval)
    assert [tuple(pair) for pair in mined.pairs.tolist()] == expected
    assert (np.diff(mined.scores) <= 0).all()


def test_threshold_keeps_equal_scores():
    mined = mine(MATCHES, "forward")
    assert mined.above(float(np.float32(1.2))).pairs.tolist() == [[0, 0], [1, 0]]


def test_neighbourhoods_without_positive_mean_are_reported(caplog):
    source = normalised(np.array([[1, 0], [-1, 0]], np.float32))
    target = normalised(np.array([[1, 0.1]], np.float32))
    with caplog.at_level(logging.WARNING):
        best_matches(source, target, margin="ratio", num_neighbors=1)
    assert "1 of 2 source sentences" in caplog.text
