"""Rows out of flat arrays: special tokens put around pieces, for many rows at once and without a loop over rows or tokens."""

# S rows, T tokens of all rows, P pieces of the source, W words of the source

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mlmx.data.encoding import offsets_of
from mlmx.data.rows import TokenRows
from mlmx.data.vocabulary import RowLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The flat arrays that rows are cut from.

    Attributes:
        pieces: (P,) token ids.
        words: (P,) index of the piece's word within its text.
        tags: layer -> (W,) class of each word.
    """

    pieces: NDArray[np.generic]
    words: NDArray[np.int32]
    tags: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of some rows: a run of pieces each.

    Attributes:
        starts: (S,) int64 first piece.
        lengths: (S,) int64 number of pieces.
        languages: (S,) int8 language.
        first_words: (S,) int64 number, in the source, of the first word of the text that the run lies in; needed for tags only.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    languages: NDArray[np.int8]
    first_words: NDArray[np.int64] | None = None


def gather(layout: RowLayout, source: Source, sides: Sequence[Side], row_ids: NDArray[np.int64]) -> TokenRows:
    """Return rows with these sides, laid out with the special tokens of ``layout``.

    Word indices start at 0 in each row and rise through all sides.
    """
    specials = np.full(len(row_ids), layout.num_special_of(len(sides)), np.int64)
    offsets = offsets_of(sum((side.lengths for side in sides), specials))
    total = int(offsets[-1])
    input_ids = np.zeros(total, np.int64)
    words = np.full(total, -1, np.int32)
    segments = np.zeros(total, np.int8)
    languages = np.full(total, -1, np.int8)
    tags = {layer: np.zeros(total, np.uint8) for layer in source.tags}

    cursor = offsets[:-1].copy()
    num_words = np.zeros(len(row_ids), np.int64)

    def put(ids: Sequence[int], segment: int) -> None:
        for token_id in ids:
            input_ids[cursor] = token_id
            segments[cursor] = segment
            cursor[:] += 1

    put(layout.prefix, 0)
    for number, side in enumerate(sides):
        if number:
            put(layout.middle[: layout.middle_split], number - 1)
            put(layout.middle[layout.middle_split :], number)
        run_offsets = offsets_of(side.lengths)
        within = np.arange(run_offsets[-1]) - np.repeat(run_offsets[:-1], side.lengths)
        into = np.repeat(cursor, side.lengths) + within
        source_pieces = np.repeat(side.starts, side.lengths) + within
        piece_words = source.words[source_pieces].astype(np.int64)
        filled = side.lengths > 0
        first, last = np.zeros_like(num_words), np.full_like(num_words, -1)
        first[filled] = piece_words[run_offsets[:-1][filled]]
        last[filled] = piece_words[run_offsets[1:][filled] - 1]
        input_ids[into] = source.pieces[source_pieces]
        words[into] = piece_words + np.repeat(num_words - first, side.lengths)
        segments[into] = number
        languages[into] = np.repeat(side.languages, side.lengths)
        if source.tags:
            assert side.first_words is not None
            source_words = np.repeat(side.first_words, side.lengths) + piece_words
            for layer, classes in source.tags.items():
                tags[layer][into] = classes[source_words]
        cursor += side.lengths
        num_words += last - first + 1
    put(layout.suffix, len(sides) - 1)
    return TokenRows(
        input_ids=input_ids,
        cu_seqlens=offsets.astype(np.int32),
        words=words,
        segments=segments,
        languages=languages,
        row_ids=np.asarray(row_ids, np.int64),
        tags=tags,
    )


def windows(
    offsets: NDArray[np.int64], word_pieces: NDArray[np.int64], max_pieces: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cut texts into windows of at most ``max_pieces``, at word boundaries: every piece lies in exactly one window.

    A word longer than a window is cut where the window ends.

    Args:
        offsets: (N+1,) where the texts begin and end.
        word_pieces: (W,) first piece of each word, rising.
        max_pieces: the longest window.

    Returns:
        For each window its text, its first piece and its number of pieces, in the order of the texts.
    """
    texts = np.flatnonzero(np.diff(offsets) > 0)
    starts, ends = offsets[texts], offsets[texts + 1]
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
    while len(texts) or not found:
        # One window of every text that still has pieces: as many rounds as the longest text has windows.
        cuts = ends.copy()
        overlong = np.flatnonzero(ends - starts > max_pieces)
        cuts[overlong] = last_boundary(word_pieces, starts[overlong], starts[overlong] + max_pieces)
        found.append((texts, starts, cuts - starts))
        texts, starts, ends = texts[overlong], cuts[overlong], ends[overlong]
    first, *others = found
    if not others:
        return first
    # Sorting all of them would take far more memory than putting those that are few into their places.
    joined = [np.concatenate(column) for column in zip(*others, strict=True)]
    order = np.argsort(joined[1])
    places = np.searchsorted(first[1], joined[1][order])
    texts, starts, lengths = (np.insert(column, places, more[order]) for column, more in zip(first, joined, strict=True))
    return texts, starts, lengths


def fair_lengths(full: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """Return how many pieces each side of each row keeps, (S, K), where all of a row have to fit into ``room``.

    The longer ones lose first, down to the same length; what then does not divide, the first of them keep.

    Args:
        full: (S, K) pieces of each of the K sides.
        room: pieces of a row at most; K or more.
    """
    ascending = np.sort(full, axis=1)
    # The length that a side and all longer ones may have if all shorter ones are kept whole.
    levels = (room - ascending.cumsum(axis=1) + ascending) // np.arange(full.shape[1], 0, -1)
    too_long = ascending > levels
    first = too_long.argmax(axis=1, keepdims=True)
    level = np.where(too_long.any(axis=1, keepdims=True), np.take_along_axis(levels, first, axis=1), ascending[:, -1:])
    kept = np.minimum(full, level)
    cut = np.asarray(full > level)
    return np.asarray(kept + (cut & (cut.cumsum(axis=1) <= room - kept.sum(axis=1, keepdims=True))))


def last_boundary(word_pieces: NDArray[np.int64], starts: NDArray[np.int64], limits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the last word boundary at or before each limit, or the limit where a single word fills the run from ``starts``."""
    if len(word_pieces) == 0:
        return limits
    boundary = word_pieces[np.maximum(np.searchsorted(word_pieces, limits, side="right") - 1, 0)]
    return np.where(boundary > starts, boundary, limits)
