"""Rows of a stored corpus: each segment by itself, or the sides of each example together."""

# S rows of a batch, N rows of the dataset, G segments

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.data.gather import Side, Source, fair_lengths, gather, last_boundary, windows
from mlmx.data.rows import RowDataset, TokenRows
from mlmx.data.store import TokenStore
from mlmx.data.vocabulary import RowLayout, Vocabulary
from mlmx.errors import user_error


class StoreRows(RowDataset):
    """What both views share.

    Attributes:
        store: the corpus.
        weights: (N,) how often a row is seen per epoch (mixtures), or None for once.
    """

    def __init__(self, store: TokenStore, layout: RowLayout) -> None:
        self.store = store
        self.layout = layout

    @property
    @abstractmethod
    def examples(self) -> NDArray[np.int64]:
        """(N,) the example each row comes from."""

    @property
    def weights(self) -> NDArray[np.float64] | None:
        part_weights = self.store.part_weights
        return None if part_weights is None else part_weights[self.store.arrays["parts"][self.examples]]

    @property
    def lost(self) -> dict[str, float]:
        """Language -> part of its pieces that no row holds, in (0, 1]; without the languages that lost nothing."""
        counts = self.store.meta["by_language"]
        return {language: lost / counts[language]["pieces"] for language, lost in self.num_truncated.items() if lost}

    def _source(self) -> Source:
        arrays = self.store.arrays
        return Source(pieces=arrays["pieces"], words=arrays["words"], tags=self.store.tags)

    def _side(self, segments: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Side:
        arrays = self.store.arrays
        return Side(
            starts=starts, lengths=lengths, languages=arrays["languages"][segments], first_words=arrays["word_offsets"][segments]
        )

    def _count_lost(self, segments: NDArray[np.int64], lost: NDArray[np.int64]) -> dict[str, int]:
        # Every language is named, those that lost nothing too.
        names = self.store.languages
        totals = np.bincount(self.store.arrays["languages"][segments], weights=lost, minlength=len(names))
        return {name: int(total) for name, total in zip(names, totals, strict=True)}


class SegmentRows(StoreRows):
    """Each segment of the corpus in a row of its own; an overlong one becomes several windows, or loses its end."""

    def __init__(
        self, store: TokenStore, vocabulary: Vocabulary, *, max_length: int, overlong: Literal["split", "truncate"]
    ) -> None:
        super().__init__(store, vocabulary.single)
        room = _room(vocabulary.single, 1, max_length)
        offsets = store.arrays["piece_offsets"]
        if overlong == "split":
            self.segments, self.starts, lengths = windows(offsets, store.arrays["word_pieces"], room)
            self.num_truncated = dict.fromkeys(store.languages, 0)
        else:
            self.segments, self.starts = np.arange(store.num_segments), np.array(offsets[:-1])
            full = np.diff(offsets)
            lengths = np.minimum(full, room)
            self.num_truncated = self._count_lost(self.segments, full - lengths)
        self.lengths = (lengths + vocabulary.single.num_special).astype(np.int32)

    @property
    def examples(self) -> NDArray[np.int64]:
        return self.segments // self.store.num_sides

    def take(self, indices: NDArray[np.int64]) -> TokenRows:
        lengths = self.lengths[indices].astype(np.int64) - self.layout.num_special
        sources = self.segments[indices]
        side = self._side(sources, self.starts[indices], lengths)
        return replace(gather(self.layout, self._source(), [side], indices), sources=sources)


class PairRows(StoreRows):
    """Each pair or triplet in one row; the longest sides of an overlong one lose their ends, at word boundaries."""

    def __init__(
        self, store: TokenStore, vocabulary: Vocabulary, *, separator: Literal["template", "own"], max_length: int
    ) -> None:
        layout = vocabulary.pair_layout(separator)
        super().__init__(store, layout)
        offsets = store.arrays["piece_offsets"]
        full = np.diff(offsets).reshape(-1, store.num_sides)
        kept = fair_lengths(full, _room(layout, store.num_sides, max_length))
        starts = np.array(offsets[:-1]).reshape(full.shape)
        cut = kept < full
        kept[cut] = last_boundary(store.arrays["word_pieces"], starts[cut], (starts + kept)[cut]) - starts[cut]
        self.starts, self.kept = starts, kept
        self.num_truncated = self._count_lost(np.arange(store.num_segments), (full - kept).reshape(-1))
        self.lengths = (kept.sum(axis=1) + layout.num_special_of(store.num_sides)).astype(np.int32)

    @property
    def examples(self) -> NDArray[np.int64]:
        return np.arange(self.store.num_examples)

    def take(self, indices: NDArray[np.int64]) -> TokenRows:
        first = self.store.num_sides * indices
        sides = [
            self._side(first + side, self.starts[indices, side], self.kept[indices, side]) for side in range(self.store.num_sides)
        ]
        return replace(gather(self.layout, self._source(), sides, indices), sources=first)


def open_rows(
    store: TokenStore,
    vocabulary: Vocabulary,
    *,
    view: Literal["segment", "pair"],
    separator: Literal["template", "own"] = "template",
    max_length: int,
    overlong: Literal["split", "truncate"] = "split",
) -> StoreRows:
    """Return the rows of a stored corpus.

    Args:
        store: the corpus.
        vocabulary: that of the tokenizer it was tokenised with.
        view: each ``segment`` by itself, or each ``pair``, or triplet, in one row.
        separator: how the sides of a pair are joined.
        max_length: tokens per row at most, special tokens included.
        overlong: what becomes of a segment that is too long: ``split`` into windows, so that nothing is lost, or ``truncate``. A
            pair cannot be split: its sides are always truncated.

    Raises:
        UserError: if pairs are asked for and the corpus has none, if nothing fits into a row, or if the tokenizer is another one.
    """
    if store.meta["vocabulary_size"] != vocabulary.size:
        message = f"was tokenised with {store.meta['vocabulary_size']} token ids, the model has {vocabulary.size}."
        raise user_error("corpus", message)
    if view == "segment":
        return SegmentRows(store, vocabulary, max_length=max_length, overlong=overlong)
    if store.num_sides == 1:
        raise user_error("corpus", "the objective needs pairs of sentences, but this corpus is not parallel.")
    return PairRows(store, vocabulary, separator=separator, max_length=max_length)


def _room(layout: RowLayout, num_sides: int, max_length: int) -> int:
    num_special = layout.num_special_of(num_sides)
    room = max_length - num_special
    if room < num_sides:
        raise user_error("trainer.max_length", f"{max_length} leaves no room beside the {num_special} special tokens of a row.")
    return room


__all__ = ["PairRows", "SegmentRows", "StoreRows", "TokenStore", "open_rows"]
