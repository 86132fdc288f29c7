"""The n-grams of a corpus, by their t-scores."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mlmx.data.ngram_lexicon import NgramLexicon, decoded, encoded, t_scores
from mlmx.errors import UserError

A, B, C, D = range(1, 5)


def stored(*texts: list[int], vocabulary_size: int = 10) -> SimpleNamespace:
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    arrays = {"pieces": np.array([token for text in texts for token in text], np.int32), "piece_offsets": offsets}
    return SimpleNamespace(arrays=arrays, meta={"vocabulary_size": vocabulary_size}, num_segments=len(texts))


def lexicon(store, *num_kept: int) -> list[list[int]]:
    statistic = NgramLexicon(num_kept=num_kept)
    parts = [part["ngrams"] for part in statistic.collect(store, show_progress=False)]
    return np.concatenate(parts).reshape(-1, statistic.longest).tolist()


def test_scores_by_hand():
    # a b a b c: the pairs ab (twice), ba, bc; a and b are two tokens of five, c is one.
    scores = t_scores(np.array([2, 1, 1]), np.array([0.4 * 0.4, 0.4 * 0.4, 0.4 * 0.2]))
    once = (0.25 * 0.75 / 4) ** 0.5
    assert scores == pytest.approx([(0.5 - 0.16) / (0.5 * 0.5 / 4) ** 0.5, (0.25 - 0.16) / once, (0.25 - 0.08) / once])
    assert lexicon(stored([A, B, A, B, C]), 2) == [[A, B], [B, C]]
    assert lexicon(stored([A, B, A, B, C]), 9) == [[A, B], [B, C], [B, A]]


def test_ngrams_lie_within_a_text_and_lengths_follow_each_other():
    # No text holds "c a".
    texts = [[A, B, C], [A, B, C], [A, B, C], [D], [D, D]]
    assert lexicon(stored(*texts), 9, 9) == [[A, B, -1], [B, C, -1], [D, D, -1], [A, B, C]]
    assert lexicon(stored(*texts), 1, 0) == [[A, B, -1]]


def test_ngrams_that_are_chance_are_left_out():
    rng = np.random.default_rng(0)
    text = rng.integers(1, 3, size=4000).tolist()
    text[::7] = [3] * len(text[::7])
    text[1::7] = [4] * len(text[1::7])
    found = lexicon(stored(text), 100)
    assert found[0] == [3, 4]
    assert [4, 3] not in found


@pytest.mark.parametrize("block_pieces", [1, 7, 1 << 18])
def test_counts_are_those_of_the_whole_corpus(block_pieces, monkeypatch):
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 9, size=rng.integers(0, 12)).tolist() for _ in range(40)]
    whole = lexicon(stored(*texts), 50, 50)
    monkeypatch.setattr("mlmx.data.statistic._BLOCK_PIECES", block_pieces)
    assert lexicon(stored(*texts), 50, 50) == whole


def test_numbers_of_ngrams():
    tokens = np.array([3, 1, 4, 1, 5])
    np.testing.assert_array_equal(encoded(tokens, 3, 10), [314, 141, 415])
    np.testing.assert_array_equal(decoded(np.array([314, 15]), 3, 10), [[3, 1, 4], [0, 1, 5]])
    assert len(encoded(tokens[:1], 2, 10)) == 0


def test_ngrams_that_are_too_many_to_be_numbered():
    with pytest.raises(UserError, match=r"ngrams\.num_kept: n-grams of 4 of 250,002 tokens cannot be counted"):
        lexicon(stored([A, B], vocabulary_size=250_002), 10, 10, 10)
