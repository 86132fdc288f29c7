"""What may be selected: the tokens and words of rows laid end to end, and ways to order them at random.

Nothing here loops over tokens: rows are ranked all at once, with one sort over a key that holds the row and the draw.
"""

# S rows, T tokens of all rows, N units (tokens or words), P selected tokens

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlmx.keyed import fold, stream

# A draw keeps 40 of its 64 bits, so that it shares a sort key with the row's number; ties are broken by position.
_DRAW_BITS = 40
_MAX_ROWS = 1 << (63 - _DRAW_BITS)


class Rows(Protocol):
    """What masking reads of rows; ``mlmx.data.rows.TokenRows`` is one."""

    @property
    def words(self) -> NDArray[np.int32]:
        """(T,) word of each token within its row, -1 for special tokens."""

    @property
    def segments(self) -> NDArray[np.int8]:
        """(T,) side of a pair."""

    @property
    def cu_seqlens(self) -> NDArray[np.int32]:
        """(S+1,) where rows begin."""

    @property
    def tags(self) -> Mapping[str, NDArray[np.uint8]]:
        """Layer -> (T,) class of the token's word."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tokens a model has to predict.

    Attributes:
        positions: (P,) int64 index of each selected token among all tokens, rising.
        row: (P,) int64 row of each.
        places: (P,) int64 index of each within its row.
        units: (P,) int64 number of the unit, within its row, whose tokens are corrupted alike.
    """

    positions: NDArray[np.int64]
    row: NDArray[np.int64]
    places: NDArray[np.int64]
    units: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ordinary tokens of rows: all but the special ones.

    Attributes:
        position: (N,) int64 index among all tokens, rising.
        row: (N,) int64 row.
        place: (N,) int64 index within the row.
    """

    position: NDArray[np.int64]
    row: NDArray[np.int64]
    place: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Rows) -> Tokens:
        """Return the ordinary tokens of rows."""
        row_of_token = np.repeat(np.arange(len(rows.cu_seqlens) - 1), np.diff(rows.cu_seqlens))
        position = np.flatnonzero(rows.words >= 0)
        row = row_of_token[position]
        return cls(position, row, position - rows.cu_seqlens[row])

    def select(self, chosen: NDArray[np.int64], units: NDArray[np.int64] | None = None) -> Selection:
        """Return the selection of some tokens; each its own unit unless ``units`` says otherwise."""
        places = self.place[chosen]
        return Selection(self.position[chosen], self.row[chosen], places, places if units is None else units)


@dataclass(frozen=True, slots=True)
class Words:
    """Words (or spans of words): runs of ordinary tokens.

    Attributes:
        tokens: the tokens they consist of.
        first: (N,) int64 index of the unit's first token in ``tokens``.
        size: (N,) int64 number of tokens.
        row: (N,) int64 row, never falling.
        index: (N,) int64 index of the (first) word within its row: what its draws are keyed by.
    """

    tokens: Tokens
    first: NDArray[np.int64]
    size: NDArray[np.int64]
    row: NDArray[np.int64]
    index: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Rows) -> Words:
        """Return the words of rows."""
        tokens = Tokens.of(rows)
        word = rows.words[tokens.position].astype(np.int64)
        begins = np.ones(len(word), bool)
        begins[1:] = (word[1:] != word[:-1]) | (tokens.row[1:] != tokens.row[:-1])
        return cls.from_starts(tokens, word, np.flatnonzero(begins))

    @classmethod
    def from_starts(cls, tokens: Tokens, word: NDArray[np.int64], first: NDArray[np.int64]) -> Words:
        """Return the units that begin at ``first``, each reaching to the next one."""
        size = np.diff(first, append=len(tokens.position))
        return cls(tokens, first, size, tokens.row[first], word[first])


def unit_keys(keys: NDArray[np.int64], row: NDArray[np.int64], index: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    """Return one key per unit for the draws of a stream.

    Args:
        keys: (S,) key of each row.
        row: (N,) row of each unit.
        index: (N,) number of the unit within its row.
        name: the stream.
    """
    return fold(fold(keys, stream(name))[row], index)


def random_order(row: NDArray[np.int64], draws: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the units row by row, in random order within each row.

    Args:
        row: (N,) row of each unit.
        draws: (N,) key of each unit, which decides the order.
    """
    if len(row) and int(row.max()) >= _MAX_ROWS:
        raise ValueError(f"at most {_MAX_ROWS} rows can be masked at once")
    bits = (draws >> (64 - _DRAW_BITS)) & ((1 << _DRAW_BITS) - 1)
    return np.argsort((row << _DRAW_BITS) | bits, kind="stable")


def rank_in_group(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each element how many of its group stand before it, where groups are runs of equal values."""
    begins = np.ones(len(group), bool)
    begins[1:] = group[1:] != group[:-1]
    starts = np.flatnonzero(begins)
    return np.arange(len(group)) - np.repeat(starts, np.diff(starts, append=len(group)))


def count_before(values: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each element the sum of the values before it in its group, where groups are runs of equal values."""
    exclusive: NDArray[np.int64] = np.cumsum(values) - values
    begins = np.ones(len(group), bool)
    begins[1:] = group[1:] != group[:-1]
    starts = np.flatnonzero(begins)
    return exclusive - np.repeat(exclusive[starts], np.diff(starts, append=len(group)))


def budgets(rows: Rows, tokens: Tokens, ratio: float, *, count_specials: bool) -> NDArray[np.int64]:
    """Return (S,) how many tokens each row selects: ``max(1, round(ratio * length))``, and 0 for a row without ordinary tokens.

    Halves are rounded to the even neighbour, as Python's ``round`` does; a ratio of 0 selects nothing.

    Args:
        rows: the rows.
        tokens: their ordinary tokens.
        ratio: the part to select, in [0, 1].
        count_specials: whether the length counts special tokens.
    """
    num_rows = len(rows.cu_seqlens) - 1
    ordinary = np.bincount(tokens.row, minlength=num_rows)
    lengths = np.diff(rows.cu_seqlens).astype(np.int64) if count_specials else ordinary
    budget = np.maximum(np.rint(ratio * lengths).astype(np.int64), 1 if ratio > 0 else 0)
    limited: NDArray[np.int64] = np.minimum(budget, ordinary)
    return limited
