"""Word sets, as they are drawn from texts."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sample import monolingual, tokenizer

from mlmx.data.prepare import prepare_corpus
from mlmx.data.store import TokenStore
from mlmx.data.unigram_model import CorpusWords, UnigramModel, is_word
from mlmx.data.word_sets import WordSets
from mlmx.errors import UserError

TEXTS = ["a b a c .", "b b d", "A c", "12 . ,", "c d d a b c"]
SETTINGS = {
    "pairs_per_text": 4,
    "mean_words": 3.0,
    "smoothing": None,
    "min_count": 1,
    "max_text_ratio": 1.0,
    "subsampling": None,
    "stop_words": None,
    "seed": 0,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return stored(tmp_path_factory.mktemp("word_sets") / "data", TEXTS)


def stored(folder: Path, texts: list[str]) -> TokenStore:
    prepare_corpus(monolingual(texts), tokenizer("character"), folder, show_progress=False)
    return TokenStore.open(folder)


def collected(store: TokenStore, **settings) -> dict[str, np.ndarray]:
    parts = list(WordSets(**{**SETTINGS, **settings}).collect(store, show_progress=False))
    names = {name for part in parts for name in part}
    return {name: np.concatenate([part[name] for part in parts if name in part]) for name in names}


def model_of(store: TokenStore, **settings) -> UnigramModel:
    given = {"min_count": 1, "max_text_ratio": 1.0, "stop_words": set(), "smoothing": None, **settings}
    return UnigramModel(CorpusWords(store, show_progress=False), **given)


def spelled(sets: dict[str, np.ndarray], words: np.ndarray) -> list[str]:
    """The words as the tokenizer spells their tokens."""
    offsets = sets["lexicon_offsets"]
    return [tokenizer("character").decode(sets["lexicon_pieces"][offsets[w] : offsets[w + 1]]).strip() for w in words]


def pairs_of(sets: dict[str, np.ndarray], text: int) -> list[tuple[np.ndarray, np.ndarray]]:
    first, last = sets["pair_offsets"][text : text + 2]
    places = sets["set_offsets"]
    return [np.split(sets["set_words"][places[pair] : places[pair + 1]], 2) for pair in range(first, last)]


def likelihood(word: str, text: str) -> float:
    """P(word | text) of the corpus above, by the formula; ``b`` is in three texts of the four that have words, and so on."""
    words = [part.lower() for part in text.split() if part.isalpha()]
    of_texts = Counter(word for other in TEXTS for word in {part.lower() for part in other.split() if part.isalpha()})
    smoothing = sum(part.isalpha() for other in TEXTS for part in other.split()) / len(TEXTS)
    return (words.count(word) + smoothing * of_texts[word] / of_texts.total()) / (len(words) + smoothing)


def test_the_likelier_set_comes_first_and_both_are_equally_large(store):
    sets = collected(store, pairs_per_text=50)
    assert len(sets["pair_offsets"]) == len(TEXTS) + 1
    num_pairs = 0
    for number, text in enumerate(TEXTS):
        for better, worse in pairs_of(sets, number):
            assert len(better) == len(worse) > 0
            scores = [sum(math.log(likelihood(word.lower(), text)) for word in spelled(sets, one)) for one in (better, worse)]
            assert scores[0] > scores[1] + 1e-12
            num_pairs += 1
    assert num_pairs == len(sets["set_offsets"]) - 1 > 50
    assert not pairs_of(sets, 3)  # no words
    # Equally likely sets are dropped.
    assert num_pairs < 50 * 4


def test_the_model_of_a_text(store):
    model, texts = model_of(store), [text.split() for text in TEXTS]
    numbers = [model.numbers(text) for text in texts]
    every = np.arange(4)
    for text in (0, 1, 2, 4):
        given = np.full(4, text)
        assert np.exp(model.log_probability(numbers, given, every)).sum() == pytest.approx(1)
        model.smoothing = 1e-9
        counts = np.bincount(numbers[text], minlength=4)
        np.testing.assert_allclose(np.exp(model.log_probability(numbers, given, every)), counts / counts.sum(), atol=1e-8)
        model.smoothing = 1e9
        np.testing.assert_allclose(np.exp(model.log_probability(numbers, given, every)), model.background, rtol=1e-6)
        model.smoothing = 3.0
    # a, b, c are in three texts each, d in two.
    by_word = dict(zip("abcd", model.background[model.numbers("abcd")], strict=True))
    assert by_word == pytest.approx({"a": 3 / 11, "b": 3 / 11, "c": 3 / 11, "d": 2 / 11})
    assert model_of(store).smoothing == 3.0


def test_what_is_drawn_follows_the_model_of_the_text(store):
    statistic = WordSets(**{**SETTINGS, "pairs_per_text": 4000})
    model = model_of(store)
    texts = [model.numbers(TEXTS[0].split())]
    text_of_word, keys = np.zeros(20_000, np.int64), np.random.default_rng(0).integers(-(1 << 63), 1 << 63, size=20_000)
    words = statistic._words(model, texts, text_of_word, keys)
    expected = np.exp(model.log_probability(texts, np.zeros(4, np.int64), np.arange(4)))
    np.testing.assert_allclose(np.bincount(words, minlength=4) / len(words), expected, atol=4 * (0.25 / len(words)) ** 0.5)
    # Kept with another probability each, the shares change accordingly.
    rarer = WordSets(**{**SETTINGS, "subsampling": 0.01})
    ratio = 0.01 / model.frequency
    kept = expected * (np.sqrt(ratio) + ratio)
    words = rarer._words(model, texts, text_of_word, keys)
    np.testing.assert_allclose(np.bincount(words, minlength=4) / len(words), kept / kept.sum(), atol=4 * (0.25 / len(words)) ** 0.5)


def test_sizes_are_poisson_without_zero():
    keys = np.random.default_rng(0).integers(-(1 << 63), 1 << 63, size=50_000)
    sizes = WordSets(**SETTINGS)._sizes(keys)
    share = np.bincount(sizes, minlength=20) / len(sizes)
    expected = np.array([0.0] + [math.exp(-3) * 3**k / math.factorial(k) / (1 - math.exp(-3)) for k in range(1, 8)])
    np.testing.assert_allclose(share[:8], expected, atol=4 * (0.25 / len(sizes)) ** 0.5)


def test_sets_are_those_of_the_text_wherever_it_stands(store, tmp_path, monkeypatch):
    whole = collected(store)
    monkeypatch.setattr("mlmx.data.statistic._BLOCK_PIECES", 5)
    for name, values in collected(store).items():
        np.testing.assert_array_equal(values, whole[name])
    other = collected(store, seed=1)
    assert not np.array_equal(other["set_words"], whole["set_words"])


def test_words_that_are_left_out(store, tmp_path):
    assert is_word("ක්‍රියාකාරී")
    assert not any(map(is_word, ("12", "a1", ".", "a-b")))
    stop_words = tmp_path / "stop.txt"
    stop_words.write_text("A\nd\n")
    sets = collected(store, stop_words=str(stop_words))
    assert set(spelled(sets, np.arange(len(sets["lexicon_offsets"]) - 1))) == {"b", "c"}
    sets = collected(store, max_text_ratio=0.4)
    assert spelled(sets, np.arange(len(sets["lexicon_offsets"]) - 1)) == ["d"]
    assert not len(sets["set_words"])  # One word makes no two sets of which one is likelier.


def test_what_leaves_no_word_is_told(store, tmp_path):
    stop_words = tmp_path / "stop.txt"
    stop_words.write_text("a\nb\nc\nd\n")

    def told(where: str, few: str, frequent: str, stopped: int, **settings) -> None:
        message = f"{where}: leaves no word: {few}, {frequent}, stop_words {stopped} of the corpus' 4 words."
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            collected(store, **settings)

    told("word_sets.min_count", "min_count=100 leaves out 4", "max_text_ratio=1 0", 0, min_count=100)
    told("word_sets.max_text_ratio", "min_count=4 leaves out 1", "max_text_ratio=0.1 4", 0, min_count=4, max_text_ratio=0.1)
    # d occurs three times, in two texts of five; the others are in three.
    told("word_sets.stop_words", "min_count=4 leaves out 1", "max_text_ratio=0.4 3", 4, min_count=4, max_text_ratio=0.4,
         stop_words=str(stop_words))  # fmt: skip
    with pytest.raises(UserError, match=r"^corpus: it has no word of letters\.$"):
        collected(stored(tmp_path / "data", ["12 . ,"]))


def test_a_word_has_the_tokens_of_its_most_frequent_spelling(tmp_path):
    store = stored(tmp_path / "data", ["Sri x", "sri y", "sri z", "Lanka"])
    sets = collected(store)
    assert {"sri", "Lanka"} < set(spelled(sets, np.arange(len(sets["lexicon_offsets"]) - 1)))
