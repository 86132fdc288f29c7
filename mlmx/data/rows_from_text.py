"""Rows from texts in memory: what tasks encode, classify and tag."""

# S rows of a batch, N rows of the dataset, T tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlmx.data.encoding import Encoded, PieceEncoder, offsets_of
from mlmx.data.gather import Side, Source, fair_lengths, gather, windows
from mlmx.data.rows import RowDataset, TokenRows
from mlmx.data.vocabulary import Vocabulary
from mlmx.errors import user_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of tokens that carry none."""

# The language of texts whose language nobody told (BCP 47).
_UNDETERMINED = "und"


class TextRows(RowDataset):
    """Texts, or pairs of texts, one row each, with an optional label per row.

    A text without pieces (an empty one) is a row of special tokens only, so that rows and texts keep the same numbers. Overlong
    texts lose their end, of a pair the longer text first; how many pieces were lost stands in ``num_truncated``.

    Attributes:
        num_truncated: ``{"und": pieces lost}``.
        num_unknown: pieces that are the unknown token.
        num_truncated_rows: rows that lost pieces.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        max_length: int,
        pairs: Sequence[str] | None = None,
        labels: NDArray[np.int64] | NDArray[np.float32] | None = None,
    ) -> None:
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts, but {len(pairs)} partners")
        if labels is not None and len(labels) != len(texts):
            raise ValueError(f"{len(texts)} texts, but {len(labels)} labels")
        encoder = PieceEncoder(tokenizer)
        self.layout = vocabulary.single if pairs is None else vocabulary.pair
        self.labels = labels
        sides = [encoder.encode(texts)] + ([] if pairs is None else [encoder.encode(pairs)])
        room = max_length - self.layout.num_special
        if room < len(sides):
            raise user_error(
                "max_length", f"{max_length} leaves no room beside the {self.layout.num_special} special tokens of a row."
            )
        full = np.stack([np.diff(side.piece_offsets) for side in sides], axis=1)
        self.kept = fair_lengths(full, room)
        starts = [side.piece_offsets[:-1] for side in sides]
        starts = [start + shift for start, shift in zip(starts, [0, len(sides[0].pieces)], strict=False)]
        self.starts = np.stack(starts, axis=1)
        self.source = Source(
            pieces=np.concatenate([side.pieces for side in sides]), words=np.concatenate([side.words for side in sides])
        )
        self.lengths = (self.kept.sum(axis=1) + self.layout.num_special).astype(np.int32)
        self.num_truncated = {_UNDETERMINED: int((full - self.kept).sum())}
        self.num_truncated_rows = int((full > self.kept).any(axis=1).sum())
        self.num_unknown = 0 if tokenizer.unk_token_id is None else int((self.source.pieces == tokenizer.unk_token_id).sum())

    def take(self, indices: NDArray[np.int64]) -> TokenRows:
        indices = np.asarray(indices, np.int64)
        no_language = np.zeros(len(indices), np.int8)
        sides = [
            Side(starts=self.starts[indices, side], lengths=self.kept[indices, side], languages=no_language)
            for side in range(self.starts.shape[1])
        ]
        rows = gather(self.layout, self.source, sides, indices)
        return rows if self.labels is None else replace(rows, labels=self.labels[indices])


class WordRows(RowDataset):
    """Sentences split into words, with a label per word on the first of its pieces.

    A sentence longer than a row is cut into windows at word boundaries, so that no label is lost to length. A word for which the
    tokenizer has no pieces has no place for its label: ``num_lost_labels`` counts them.

    Attributes:
        sentences: (N,) int64 the sentence each row comes from.
        num_lost_labels: words without pieces.
        num_sentences: sentences given; one without any piece has no row.
    """

    def __init__(
        self,
        words: Sequence[Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        max_length: int,
        labels: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if labels is not None and [len(sentence) for sentence in labels] != [len(sentence) for sentence in words]:
            raise ValueError("labels and words differ in number")
        encoded = PieceEncoder(tokenizer).encode_words(words)
        self.layout = vocabulary.single
        room = max_length - self.layout.num_special
        if room < 1:
            raise user_error(
                "max_length", f"{max_length} leaves no room beside the {self.layout.num_special} special tokens of a row."
            )
        first_pieces = _first_pieces(encoded)
        self.sentences, self.starts, lengths = windows(encoded.piece_offsets, np.flatnonzero(first_pieces), room)
        self.source = Source(pieces=encoded.pieces, words=encoded.words)
        self.lengths = (lengths + self.layout.num_special).astype(np.int32)
        self.num_truncated = {_UNDETERMINED: 0}
        self.num_sentences = len(words)
        self.num_lost_labels = int(encoded.word_offsets[-1]) - int(first_pieces.sum())
        # (P,) position of the piece's word in its sentence on first pieces, else -1.
        self.first_words = np.where(first_pieces, encoded.words, -1)
        self.piece_labels: NDArray[np.int64] | None = None
        if labels is not None:
            flat = np.array([label for sentence in labels for label in sentence], np.int64)
            word = np.repeat(encoded.word_offsets[:-1], np.diff(encoded.piece_offsets)) + encoded.words
            self.piece_labels = np.full(len(encoded.pieces), IGNORED)
            self.piece_labels[first_pieces] = flat[word[first_pieces]]

    def take(self, indices: NDArray[np.int64]) -> TokenRows:
        indices = np.asarray(indices, np.int64)
        rows = gather(self.layout, self.source, [self._side(indices)], indices)
        if self.piece_labels is None:
            return rows
        labels = np.full(len(rows.input_ids), IGNORED, np.int64)
        labels[~rows.special] = self.piece_labels[self._pieces(indices)]
        return replace(rows, labels=labels)

    def word_positions(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return, for each token of these rows, the position in its sentence of the word it begins, -1 for all other tokens.

        With :attr:`sentences` this takes a prediction per token back to its word.
        """
        indices = np.asarray(indices, np.int64)
        lengths = self.lengths[indices].astype(np.int64)
        positions = np.full(int(lengths.sum()), -1, np.int64)
        begins = offsets_of(lengths)[:-1] + len(self.layout.prefix)
        inner = lengths - self.layout.num_special
        within = np.arange(inner.sum()) - np.repeat(offsets_of(inner)[:-1], inner)
        positions[np.repeat(begins, inner) + within] = self.first_words[self._pieces(indices)]
        return positions

    def _side(self, indices: NDArray[np.int64]) -> Side:
        lengths = self.lengths[indices].astype(np.int64) - self.layout.num_special
        return Side(starts=self.starts[indices], lengths=lengths, languages=np.zeros(len(indices), np.int8))

    def _pieces(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        side = self._side(indices)
        offsets = offsets_of(side.lengths)
        within: NDArray[np.int64] = np.arange(offsets[-1]) + np.repeat(side.starts - offsets[:-1], side.lengths)
        return within


def _first_pieces(encoded: Encoded) -> NDArray[np.bool_]:
    first = np.ones(len(encoded.pieces), bool)
    first[1:] = encoded.words[1:] != encoded.words[:-1]
    offsets = encoded.piece_offsets
    first[offsets[:-1][np.diff(offsets) > 0]] = True
    return first
