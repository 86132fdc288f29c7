"""What may be selected: the tokens and words of rows laid end to end, and ways to order them at random.

Nothing here loops over rows or tokens. A batch is small (some hundred tokens), so that what takes time is the number of numpy's
calls: what follows from where rows begin is worked out once, by the rows.
"""

# S rows, T tokens of all rows, N units (tokens, words or spans), P selected tokens

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from mlmx.keyed import begin_fold, end_fold, fold, stream, uniform

# A draw keeps 40 of its 64 bits, so that it shares a sort key with the group's number; ties are broken by position.
_DRAW_BITS = 40
_DROPPED_BITS = np.array(64 - _DRAW_BITS, np.uint64)
_MAX_GROUPS = 1 << (63 - _DRAW_BITS)
# The largest float64 below 2**64.
_LARGEST = float(2**64 - 2**11)

# What a random choice is about.
Stream = Literal["select", "last", "piece", "corrupt", "random", "length", "sample", "mix", "unmask", "tie"]
_LINES: dict[Stream, int] = {name: line for line, name in enumerate(get_args(Stream))}
_STREAM_NUMBERS = np.array([[stream(name)] for name in _LINES])


class Rows(Protocol):
    """What masking reads of rows; ``mlmx.data.rows.TokenRows`` is one."""

    @property
    def input_ids(self) -> NDArray[np.int64]:
        """(T,) token ids."""

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
    def lengths(self) -> NDArray[np.int32]:
        """(S,) tokens per row."""

    @property
    def row_of_token(self) -> NDArray[np.int64]:
        """(T,) row of each token."""

    @property
    def places(self) -> NDArray[np.int64]:
        """(T,) index of each token within its row."""

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
        typed: (P,) bool whether the token's word has one of the policy's types; None for policies without types.
    """

    positions: NDArray[np.int64]
    row: NDArray[np.int64]
    places: NDArray[np.int64]
    units: NDArray[np.int64]
    typed: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls,
        rows: Rows,
        positions: NDArray[np.int64],
        *,
        units: NDArray[np.int64] | None = None,
        typed: NDArray[np.bool_] | None = None,
    ) -> Selection:
        """Return the selection of some tokens; each its own unit unless ``units`` says otherwise."""
        places = rows.places[positions]
        return cls(positions, rows.row_of_token[positions], places, places if units is None else units, typed)


class Draws:
    """The keys of all random choices about some rows, in a stream for each purpose.

    A key is a hash of the row's key, the stream, and a number within the row. What does not depend on that number is hashed once,
    for all streams together.
    """

    # (T,) how likely each token is to be selected, beside the others of its row; None: all are equally likely.
    weights: NDArray[np.float64] | None = None

    def __init__(self, keys: NDArray[np.int64]) -> None:
        """Take the key of each row (S,)."""
        self._begun = begin_fold(fold(keys, _STREAM_NUMBERS))

    def weighted(self, weights: NDArray[np.float64]) -> Draws:
        """Return the same choices, but for tokens (T,) that are not equally likely to be selected; weights are above 0."""
        draws = copy(self)
        draws.weights = weights
        return draws

    def weighted_by(self, token_weights: NDArray[np.float64] | None, input_ids: NDArray[np.int64]) -> Draws:
        """Return the choices where tokens have the weights (V,) of their ids (T,); None: these choices."""
        return self if token_weights is None else self.weighted(token_weights[input_ids])

    def order(self, units: Units) -> NDArray[np.int64]:
        """Return one key for each unit, by which :func:`random_order` orders them.

        Where tokens have weights, the next unit is at each point one of those that are left with a probability proportional to the
        mean weight of its tokens (Efraimidis and Spirakis 2006, with exponential waiting times).
        """
        drawn = self.of("select", units.row, units.index)
        if self.weights is None:
            return drawn
        sums = np.concatenate([[0.0], self.weights.cumsum()])
        weights = (sums[units.first + units.size] - sums[units.first]) / units.size
        waiting = -np.log1p(-uniform(drawn)) / weights
        # Any rising function to 64 bits; this one keeps apart what is far from 0 and 1.
        keys: NDArray[np.int64] = (waiting / (waiting + 1.0) * _LARGEST).astype(np.uint64).view(np.int64)
        return keys

    def of(self, name: Stream, row: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return one key each for some units: tokens, words or spans.

        Args:
            name: the stream: what the choice is about.
            row: (N,) row of each unit.
            index: (N,) number of the unit within its row.
        """
        return end_fold(self._begun[_LINES[name]][row], index)


@dataclass(frozen=True, slots=True)
class Units:
    """Runs of ordinary tokens that are selected as one: tokens, words, or spans of words.

    Attributes:
        first: (N,) int64 position of the unit's first token among all tokens, rising.
        size: (N,) int64 number of tokens.
        row: (N,) int64 row, never falling.
        index: (N,) int64 what the unit's draws are keyed by: the index within its row of the token, or of the (first) word.
    """

    first: NDArray[np.int64]
    size: NDArray[np.int64]
    row: NDArray[np.int64]
    index: NDArray[np.int64]

    @classmethod
    def tokens(cls, rows: Rows) -> Units:
        """Return the ordinary tokens of rows."""
        first = np.flatnonzero(rows.words >= 0)
        return cls(first, np.ones(len(first), np.int64), rows.row_of_token[first], rows.places[first])

    @classmethod
    def words(cls, rows: Rows) -> Units:
        """Return the words of rows."""
        edges = run_edges(rows.words, rows.cu_seqlens)
        word = rows.words[edges[:-1]]
        ordinary = (word >= 0).nonzero()[0]
        first = edges[ordinary]
        return cls(first, edges[ordinary + 1] - first, rows.row_of_token[first], word[ordinary].astype(np.int64))

    def num_tokens(self, rows: Rows) -> NDArray[np.int64]:
        """Return (S,) how many tokens the units of each row have."""
        return row_sums(self.row, self.size, len(rows.lengths))

    def joined(self, begins: NDArray[np.int64]) -> Units:
        """Return spans of units, of which each begins at one of ``begins`` (rising, 0 among them) and reaches to the next one."""
        return Units(self.first[begins], np.add.reduceat(self.size, begins), self.row[begins], self.index[begins])


def run_edges(values: NDArray[np.generic], cu_seqlens: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return where the runs of equal values begin, each within one row, and where the last one ends.

    Args:
        values: (T,) a value of each token.
        cu_seqlens: (S+1,) where rows begin.
    """
    begins = np.zeros(len(values) + 1, bool)
    np.not_equal(values[1:], values[:-1], out=begins[1:-1])
    begins[cu_seqlens] = True
    return begins.nonzero()[0]


def random_order(
    row: NDArray[np.int64], draws: NDArray[np.int64], rank: NDArray[np.int64] | None = None, num_ranks: int = 1
) -> NDArray[np.int64]:
    """Return the units row by row, in random order within each row.

    Args:
        row: (N,) row of each unit, never falling.
        draws: (N,) key of each unit, which decides the order.
        rank: (N,) in [0, ``num_ranks``); within a row, units of a lower rank come first.
        num_ranks: the number of ranks.
    """
    if len(row) and row[-1] >= _MAX_GROUPS // num_ranks:
        raise ValueError(f"at most {_MAX_GROUPS // num_ranks} rows can be masked at once")
    group = row if rank is None else row * num_ranks + rank
    bits = (draws.view(np.uint64) >> _DROPPED_BITS).view(np.int64)
    return (group << _DRAW_BITS | bits).argsort(kind="stable")


def first_of_rows(row: NDArray[np.int64], num: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return (N,) whether a unit is among the first of its row.

    Args:
        row: (N,) row of each unit, never falling.
        num: (S,) how many are the first ones of each row.
    """
    starts = row.searchsorted(np.arange(len(num)))
    return np.arange(len(row)) < (starts + num)[row]


def row_sums(row: NDArray[np.int64], values: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """Return (S,) the sum over each row of the values (N,) of units in ``row`` (N,)."""
    return np.bincount(row, weights=values, minlength=num_rows).astype(np.int64)


def sums_before(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each value the sum of those before it."""
    before: NDArray[np.int64] = values.cumsum() - values
    return before


def ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return start, start + 1, ... of each start, as many as its size says, end to end."""
    numbers: NDArray[np.int64] = np.arange(sizes.sum()) + (starts - sums_before(sizes)).repeat(sizes)
    return numbers


def budgets(lengths: NDArray[np.integer], ratio: float) -> NDArray[np.int64]:
    """Return (S,) how many tokens each row selects: ``max(1, round(ratio * length))``, which may be more than it has.

    Halves are rounded to the even neighbour, as Python's ``round`` does; a ratio of 0 selects nothing.

    Args:
        lengths: (S,) tokens of each row, special ones included or not.
        ratio: the part to select, in [0, 1].
    """
    budget: NDArray[np.int64] = np.maximum(np.rint(ratio * lengths), ratio > 0).astype(np.int64)
    return budget
