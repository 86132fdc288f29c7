from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample import SENTENCES, ListCorpus, monolingual, pairs, tokenizer, triplets

from mlmx.data.corpora.mixture import MixtureCorpus
from mlmx.data.corpora.parallel import ParallelCorpus
from mlmx.data.corpora.text import TextCorpus
from mlmx.data.corpus import Example, Segment
from mlmx.data.gather import fair_lengths, windows
from mlmx.data.prepare import prepare_corpus, train_tokenizer
from mlmx.data.rows_from_store import open_rows
from mlmx.data.store import TokenStore
from mlmx.data.tokenizer import TrainedTokenizer
from mlmx.data.vocabulary import Vocabulary
from mlmx.errors import UserError
from mlmx.models.load import load_tokenizer
from mlmx.objectives.views import sides_of, stacked

VOCABULARY = Vocabulary.from_tokenizer(tokenizer())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("store") / "data"
    prepare_corpus(pairs(), tokenizer(), folder)
    assert not folder.with_name("data.partial").exists()
    return TokenStore.open(folder)


def all_rows(rows):
    return rows.take(np.arange(len(rows)))


def test_store_holds_texts_words_and_counts(store: TokenStore) -> None:
    assert store.num_examples == len(SENTENCES)
    for example, sides in enumerate(SENTENCES):
        for side, text in enumerate(sides):
            assert store.text(example, side) == text
            assert store.language(example, side) == ("en", "si")[side]
            ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
            assert store.pieces(example, side).tolist() == ids
            words = [text[a:b] for a, b in store.words(example, side)]
            assert "".join(words) == text.replace(" ", "")
    counts = store.meta["by_language"]
    assert sum(counts[code]["pieces"] for code in ("en", "si")) == store.num_pieces
    assert counts["en"]["characters"] == sum(len(en) for en, _ in SENTENCES)
    assert counts["si"]["unknown_pieces"] == 0
    assert store.info.languages == ("en", "si")


def test_segments_are_what_the_tokenizer_makes_of_them(store: TokenStore) -> None:
    rows = all_rows(open_rows(store, VOCABULARY, view="segment", max_length=200))
    texts = [text for pair in SENTENCES for text in pair]
    expected = [tokenizer()(text)["input_ids"] for text in texts]
    assert rows.input_ids.tolist() == [i for ids in expected for i in ids]
    assert rows.lengths.tolist() == [len(ids) for ids in expected]
    assert (rows.special == np.isin(rows.input_ids, VOCABULARY.special_ids)).all()
    for start, end in zip(rows.cu_seqlens[:-1], rows.cu_seqlens[1:], strict=True):
        assert rows.words[start + 1] == 0
        assert set(np.diff(rows.words[start + 1 : end - 1]).tolist()) <= {0, 1}
    assert (rows.languages[rows.special] == -1).all()


@pytest.mark.parametrize("separator", ["template", "own"])
def test_pairs_are_what_the_tokenizer_makes_of_them(store: TokenStore, separator) -> None:
    dataset = pickle.loads(pickle.dumps(open_rows(store, VOCABULARY, view="pair", separator=separator, max_length=300)))
    rows = dataset.take(np.array([2, 0]))
    assert rows.row_ids.tolist() == [2, 0]
    expected = []
    for example in (2, 0):
        first, second = SENTENCES[example]
        if separator == "template":
            expected += tokenizer()(first, second)["input_ids"]
        else:
            expected += tokenizer()(first)["input_ids"] + tokenizer()(second)["input_ids"]
    assert rows.input_ids.tolist() == expected
    for start, end in zip(rows.cu_seqlens[:-1], rows.cu_seqlens[1:], strict=True):
        inner = rows.words[start:end][~rows.special[start:end]]
        assert inner[0] == 0
        assert set(np.diff(inner).tolist()) <= {0, 1}
        sides = rows.segments[start:end]
        assert (np.diff(sides) >= 0).all()
        languages = rows.languages[start:end]
        assert (languages[languages >= 0] == sides[languages >= 0]).all()
        specials = sides[rows.special[start:end]]
        assert specials.tolist() == ([0, 0, 1] if separator == "template" else [0, 0, 1, 1])


@pytest.mark.parametrize("max_length", [3, 7, 12])
def test_windows_lose_nothing_and_cut_at_words(store: TokenStore, max_length: int) -> None:
    dataset = open_rows(store, VOCABULARY, view="segment", max_length=max_length, overlong="split")
    rows = all_rows(dataset)
    assert rows.lengths.max() <= max_length
    assert dataset.num_truncated == {"en": 0, "si": 0}
    np.testing.assert_array_equal(rows.input_ids[~rows.special], store.arrays["pieces"])
    begins = rows.words == 0
    first_of_row = rows.cu_seqlens[:-1] + 1
    assert begins[first_of_row].all()
    # A row begins inside a word only where the word is longer than the row before has room.
    starts = dataset.starts
    inside = ~np.isin(starts, store.arrays["word_pieces"])
    assert (rows.lengths[np.flatnonzero(inside) - 1] == max_length).all()


def test_rows_know_the_segments_they_were_cut_from(store: TokenStore) -> None:
    rows = all_rows(open_rows(store, VOCABULARY, view="segment", max_length=7))
    assert rows.num_rows > store.num_segments
    for row, segment in enumerate(rows.sources.tolist()):
        inner = rows.input_ids[rows.cu_seqlens[row] + 1 : rows.cu_seqlens[row + 1] - 1].tolist()
        assert " ".join(map(str, inner)) in " ".join(map(str, store.pieces(*divmod(segment, 2)).tolist()))
    pairs = open_rows(store, VOCABULARY, view="pair", max_length=300).take(np.array([2, 0]))
    assert pairs.sources.tolist() == [4, 0]
    both = stacked(sides_of(pairs, VOCABULARY.single, 2))
    assert both.sources.tolist() == [4, 0, 5, 1]


def test_truncation_is_counted_per_language(store: TokenStore) -> None:
    dataset = open_rows(store, VOCABULARY, view="segment", max_length=10, overlong="truncate")
    lost = {"en": 0, "si": 0}
    for example in range(store.num_examples):
        for side, code in enumerate(("en", "si")):
            lost[code] += max(0, len(store.pieces(example, side)) - 8)
    assert dataset.num_truncated == lost
    assert len(dataset) == store.num_segments
    pieces = {code: counts["pieces"] for code, counts in store.meta["by_language"].items()}
    assert dataset.lost == {code: lost[code] / pieces[code] for code in ("en", "si") if lost[code]} != {}
    assert open_rows(store, VOCABULARY, view="segment", max_length=10).lost == {}


@pytest.mark.parametrize("max_length", [5, 16, 31, 60])
def test_overlong_pairs_lose_the_end_of_the_longer_side(store: TokenStore, max_length: int) -> None:
    dataset = open_rows(store, VOCABULARY, view="pair", max_length=max_length)
    rows = all_rows(dataset)
    assert rows.lengths.max() <= max_length
    np.testing.assert_array_equal(rows.lengths, dataset.lengths)
    room = max_length - 3
    lost = {"en": 0, "si": 0}
    for example in range(store.num_examples):
        start, end = rows.cu_seqlens[example : example + 2]
        for side, code in enumerate(("en", "si")):
            kept = rows.input_ids[start:end][(rows.segments[start:end] == side) & ~rows.special[start:end]]
            full = store.pieces(example, side)
            np.testing.assert_array_equal(kept, full[: len(kept)])
            lost[code] += len(full) - len(kept)
            if len(full) <= room // 2:
                assert len(kept) == len(full)
            assert len(kept) >= 1
    assert dataset.num_truncated == lost


def test_triplets_are_rows_of_three_sides_that_come_apart_again(tmp_path: Path) -> None:
    prepare_corpus(triplets(), tokenizer(), tmp_path / "data")
    store = TokenStore.open(tmp_path / "data")
    assert (store.num_sides, store.num_examples, store.num_segments, store.info.parallel) == (3, 2, 6, False)
    dataset = open_rows(store, VOCABULARY, view="pair", max_length=300)
    rows = dataset.take(np.array([1, 0]))
    np.testing.assert_array_equal(rows.lengths, dataset.lengths[[1, 0]])
    assert rows.sources.tolist() == [3, 0]
    assert set(rows.segments.tolist()) == {0, 1, 2}
    apart = stacked(sides_of(rows, VOCABULARY.single, 3))
    assert apart.sources.tolist() == [3, 0, 4, 1, 5, 2]
    alone = open_rows(store, VOCABULARY, view="segment", max_length=300).take(apart.sources)
    np.testing.assert_array_equal(apart.input_ids, alone.input_ids)
    np.testing.assert_array_equal(apart.words, alone.words)
    with pytest.raises(UserError, match=r"trainer\.max_length: 6 leaves no room beside the 4 special"):
        open_rows(store, VOCABULARY, view="pair", max_length=6)
    assert open_rows(store, VOCABULARY, view="pair", max_length=7).lengths.tolist() == [7, 7]


@pytest.mark.parametrize("num_sides", [1, 2, 3])
def test_the_longest_sides_lose_first_and_room_is_used(num_sides: int) -> None:
    full = np.random.default_rng(0).integers(1, 12, (300, num_sides))
    for room in range(num_sides, 30):
        kept = fair_lengths(full, room)
        assert (kept >= 1).all()
        assert (kept <= full).all()
        np.testing.assert_array_equal(kept.sum(axis=1), np.minimum(full.sum(axis=1), room))
        # Who lost something keeps at least as much as any other side, but for one piece that does not divide.
        longest = kept.max(axis=1, keepdims=True)
        assert (kept >= longest - 1)[kept < full].all()
    if num_sides == 2:
        assert fair_lengths(np.array([[9, 9], [3, 9], [9, 3], [4, 9]]), 7).tolist() == [[4, 3], [3, 4], [4, 3], [4, 3]]


def test_impossible_views(store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_length: 4 leaves no room"):
        open_rows(store, VOCABULARY, view="pair", max_length=4)
    prepare_corpus(monolingual(["one", "two"]), tokenizer(), tmp_path / "data")
    with pytest.raises(UserError, match="not parallel"):
        open_rows(TokenStore.open(tmp_path / "data"), VOCABULARY, view="pair", max_length=40)
    other = Vocabulary.from_tokenizer(tokenizer("byte"))
    with pytest.raises(UserError, match="was tokenised with"):
        open_rows(store, other, view="segment", max_length=40)


def test_examples_without_tokens_are_skipped_counted_and_named(tmp_path: Path) -> None:
    # WordPiece makes nothing of a text of spaces.
    meta = prepare_corpus(monolingual(["one", "  ", "Colombo"]), tokenizer("wordpiece"), tmp_path / "data")
    assert meta["skipped"] == {"no tokens": 1}
    assert meta["skipped_examples"] == ["memory:1"]
    assert TokenStore.open(tmp_path / "data").text(1) == "Colombo"
    with pytest.raises(UserError, match=r"no example with tokens \(no tokens: 1\)"):
        prepare_corpus(monolingual(["  "]), tokenizer("wordpiece"), tmp_path / "none")
    with pytest.raises(UserError, match="no example with tokens"):
        prepare_corpus(monolingual([]), tokenizer(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_is_left_out_of_pairs_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.tsv").write_text("en\tde\none\teins\ntwo\t\n\tdrei\nfour\tvier\n")
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    source = ParallelCorpus(path=str(tmp_path / "a.tsv"), format="tsv", columns=None, header=True, languages=["en", "de"])
    meta = prepare_corpus(source, tokenizer(), tmp_path / "data")
    places = [f"{tmp_path / 'a.tsv'}:{line}" for line in (3, 4)]
    assert meta["skipped_examples"] == places
    assert caplog.messages == [f"corpus: 2 of 4 examples left out (blank: 2), such as {', '.join(places)}"]
    caplog.clear()
    # Blank lines of a text say nothing of its quality.
    prepare_corpus(TextCorpus(path=str(tmp_path / "b.txt"), language="en"), tokenizer(), tmp_path / "text")
    assert caplog.messages == []


def test_half_a_surrogate_pair_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="memory:1: the text is not valid Unicode"):
        prepare_corpus(monolingual(["one", "\ud800"]), tokenizer(), tmp_path / "data")


def test_gold_words_and_tags_survive(tmp_path: Path) -> None:
    first = Segment("Ms Silva", "en", [(0, 2), (3, 8)], {"pos": ["NOUN", "PROPN"]})
    second = Segment("Colombo", "en", [(0, 7)], {"entity": ["B-LOC"]})
    corpus = ListCorpus([Example(str(i), (s,)) for i, s in enumerate([Segment("one", "en"), first, second])], ("en",), num_sides=1)
    prepare_corpus(corpus, tokenizer(), tmp_path / "data")
    store = TokenStore.open(tmp_path / "data")
    assert (store.segment(1), store.segment(2)) == (first, second)
    assert store.segment(0) == Segment("one", "en", [(0, 3)], {})


def test_mixtures_keep_their_weights(tmp_path: Path) -> None:
    parts = {"a": {"corpus": monolingual(["one", "two"]), "weight": 2}, "b": {"corpus": monolingual(["Colombo"]), "weight": 0.5}}
    prepare_corpus(MixtureCorpus(parts=parts), tokenizer(), tmp_path / "data")
    rows = open_rows(TokenStore.open(tmp_path / "data"), VOCABULARY, view="segment", max_length=20)
    assert rows.weights.tolist() == [2, 2, 0.5]


def test_tokenizer_stage(tmp_path: Path) -> None:
    node = TrainedTokenizer(algorithm="bpe", vocab_size=5000, lowercase=False, normalization="nfc", min_count=1)
    report = train_tokenizer(node, [pairs(), monolingual(["one"])], tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert report == {"vocabulary_size": len(loaded), "vocabulary_size_asked": 5000, "num_texts": 9}
    assert report["vocabulary_size"] < 5000


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), max_size=12), min_size=1, max_size=8), st.integers(1, 9))
def test_windows_of_any_texts(words: list[list[int]], max_pieces: int) -> None:
    offsets = np.cumsum([0, *map(sum, words)])
    flat = [size for text in words for size in text]
    word_pieces = np.cumsum([0, *flat])[:-1]
    texts, starts, lengths = windows(offsets, word_pieces, max_pieces)
    covered = [piece for start, length in zip(starts, lengths, strict=True) for piece in range(start, start + length)]
    assert covered == list(range(offsets[-1]))
    assert (lengths >= 1).all()
    assert (lengths <= max_pieces).all()
    assert (starts >= offsets[texts]).all()
    assert (starts + lengths <= offsets[texts + 1]).all()
    if max(flat, default=0) <= max_pieces:
        assert np.isin(starts, word_pieces).all()
