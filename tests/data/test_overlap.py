from __future__ import annotations

import numpy as np
import pytest

from mlmx.data.overlap import OverlapSearch
from mlmx.data.word_hashes import word_hashes
from mlmx.data.words import plain_words

WORDS = [f"w{i}" for i in range(40)]


def search(texts: list[str], corpus: list[list[str]], *, ngram_words: int = 13, min_words: int = 8):
    found = OverlapSearch(texts, ngram_words=ngram_words, min_words=min_words)
    for lines in corpus:
        found.look(lines)
    return found.overlap()


def test_words_for_comparison():
    assert plain_words("\uff34he “CAFÉ” — isn't: ﬁne!") == ["the", "café", "isn", "t", "fine"]
    # With and without the joiner: ක්‍ර and ක්ර.
    assert plain_words("ක්\u200dරියා") == plain_words("ක්රියා")
    assert plain_words("… !?") == []


def test_each_plain_word_has_a_hash_of_its_own():
    rng = np.random.default_rng(0)
    # Letters, marks, joiners, punctuation, white space of all kinds, wide and compatible forms, halves of surrogate pairs.
    characters = [*"aAbßİ\u0301\u0130 .,'\n\t\r\x0b\x1c\u2028\xa0\u3000\u200d\u200cක්රි\uff21ﬁ“€…", "\ud83d", "\U0001d400", "😀"]
    texts = ["".join(rng.choice(characters, length)) for length in rng.integers(0, 30, 500)]
    texts += ["".join(rng.choice(list("ab .\n\t\x1f"), length)) for length in rng.integers(0, 30, 500)]
    words = [plain_words(text) for text in texts]
    for some in (slice(500), slice(500, 1000), slice(1000)):
        hashes, counts = word_hashes(texts[some])
        assert counts.tolist() == [len(own) for own in words[some]]
        hash_of = dict(zip((word for own in words[some] for word in own), hashes.tolist(), strict=True))
        assert len(set(hash_of.values())) == len(hash_of)
        assert [hash_of[word] for own in words[some] for word in own] == hashes.tolist()


def test_whole_lines_after_normalisation():
    found = search(["A dog runs.", "a dog", "?!", "two  DOGS run"], [["a dog runs", "..."], ["Two dogs, run!"]])
    assert found.whole.tolist() == [True, False, False, True]
    assert found.num_runs.tolist() == [0, 0, 0, 0]


def test_runs_of_words_by_hand():
    text = " ".join(WORDS[:15])  # three runs of 13
    line = " ".join(["x", *WORDS[:14], "y"])  # holds two of them
    found = search([text, " ".join(WORDS[20:33])], [[line]])
    assert found.num_runs.tolist() == [3, 1]
    assert found.num_found.tolist() == [2, 0]
    assert found.whole.tolist() == [False, False]


def test_short_texts_are_looked_for_as_one_run():
    seven, eight, twelve = (" ".join(WORDS[:n]) for n in (7, 8, 12))
    found = search([seven, eight, twelve], [[f"before {twelve} after"]])
    assert found.num_runs.tolist() == [0, 1, 1]
    assert found.num_found.tolist() == [0, 1, 1]


def test_runs_do_not_go_on_from_line_to_line_or_text_to_text():
    lines = [" ".join(WORDS[:7]), " ".join(WORDS[7:13])]
    assert search([" ".join(WORDS[:13])], [lines]).num_found.tolist() == [0]
    texts = [" ".join(WORDS[:13]), " ".join(WORDS[13:26])]
    assert search(texts, [[" ".join(WORDS[6:19])]]).num_found.tolist() == [0, 0]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_as_a_search_by_sets_on_random_text(size):
    rng = np.random.default_rng(size)

    def sentences(number: int) -> list[list[str]]:
        return [[str(word) for word in rng.integers(3, size=length)] for length in rng.integers(1, 9, number)]

    texts, corpus = sentences(200), sentences(300)

    def runs(words: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    lines = [" ".join(words) for words in corpus]
    found = search(
        [" ".join(words) for words in texts], [lines[i : i + size] for i in range(0, 300, size)], ngram_words=5, min_words=3
    )
    for i, words in enumerate(texts):
        length = min(5, len(words))
        wanted = runs(words, length) if length >= 3 else []
        there = {run for line in corpus for run in runs(line, length)}
        assert (found.num_runs[i], found.num_found[i]) == (len(wanted), sum(run in there for run in wanted))
        assert found.whole[i] == (words in corpus)
    assert 0 < found.num_found.sum() < found.num_runs.sum()
