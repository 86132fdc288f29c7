from __future__ import annotations

import numpy as np
import pytest
from sample import SENTENCES, tokenizer

from mlmx.data.rows_from_text import IGNORED, TextRows, WordRows
from mlmx.data.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_tokenizer(tokenizer())
TEXTS = [en for en, _ in SENTENCES]


def test_texts_are_what_the_tokenizer_makes_of_them() -> None:
    rows = TextRows([*TEXTS, ""], tokenizer(), VOCABULARY, 200, labels=np.array([0, 1, 0, 1, 2])).take(np.array([4, 1]))
    assert rows.input_ids.tolist() == tokenizer()("")["input_ids"] + tokenizer()(TEXTS[1])["input_ids"]
    assert rows.labels.tolist() == [2, 1]
    assert rows.words[-2] == len(set(rows.words[~rows.special].tolist())) - 1


def test_pairs_and_truncation() -> None:
    dataset = TextRows(TEXTS, tokenizer(), VOCABULARY, 12, pairs=["a"] * len(TEXTS))
    rows = dataset.take(np.arange(len(TEXTS)))
    assert rows.lengths.max() <= 12
    full = [len(tokenizer()(text, "a")["input_ids"]) for text in TEXTS]
    assert dataset.num_truncated == {"und": sum(max(0, size - 12) for size in full)}
    assert dataset.num_truncated_rows == sum(size > 12 for size in full)
    whole = TextRows(TEXTS, tokenizer(), VOCABULARY, 300, pairs=["a"] * len(TEXTS)).take(np.array([0, 3]))
    assert whole.input_ids.tolist() == [i for text in (TEXTS[0], TEXTS[3]) for i in tokenizer()(text, "a")["input_ids"]]
    with pytest.raises(ValueError, match="4 texts, but 1 partners"):
        TextRows(TEXTS, tokenizer(), VOCABULARY, 12, pairs=["a"])


@pytest.mark.parametrize("algorithm", ["unigram", "wordpiece", "bpe", "byte", "character"])
@pytest.mark.parametrize("max_length", [6, 100])
def test_every_label_stands_on_the_first_piece_of_its_word(algorithm, max_length) -> None:
    sentences = [text.split() for text in TEXTS] + [[]]
    labels = [[10 * number + word for word in range(len(sentence))] for number, sentence in enumerate(sentences)]
    trained = tokenizer(algorithm)
    dataset = WordRows(sentences, trained, Vocabulary.from_tokenizer(trained), max_length, labels)
    indices = np.arange(len(dataset))
    rows = dataset.take(indices)
    assert rows.lengths.max() <= max_length
    assert dataset.num_lost_labels == 0
    assert rows.labels[rows.labels != IGNORED].tolist() == [label for sentence in labels for label in sentence]
    positions = dataset.word_positions(indices)
    assert ((positions >= 0) == (rows.labels != IGNORED)).all()
    sentence = np.repeat(dataset.sentences, rows.lengths)
    labelled = positions >= 0
    assert (10 * sentence[labelled] + positions[labelled] == rows.labels[labelled]).all()
    some = np.array([len(dataset) - 1, 0])
    np.testing.assert_array_equal(dataset.word_positions(some) >= 0, dataset.take(some).labels != IGNORED)


def test_words_without_pieces_are_counted() -> None:
    trained = tokenizer("wordpiece")
    dataset = WordRows([["Ms", " ", "Silva"]], trained, Vocabulary.from_tokenizer(trained), 50, [[1, 2, 3]])
    labels = dataset.take(np.array([0])).labels
    assert labels[labels != IGNORED].tolist() == [1, 3]
    assert dataset.num_lost_labels == 1
