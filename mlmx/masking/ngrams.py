"""Rows as units that are single tokens or n-grams of a lexicon: as few units as can be."""

# T tokens of all rows, N units, K n-grams, L tokens of the longest, V vocabulary

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlmx.keyed import integers
from mlmx.masking.units import Draws, Rows, Units, run_edges


@dataclass(frozen=True, slots=True)
class NgramTable:
    """The n-grams of a lexicon, to be found in rows.

    Attributes:
        vocab_size: V; n-gram k has the identity V + k, a token that of its id.
        codes: length -> numbers of the n-grams of this length, rising.
        identities: length -> the identity of each.
    """

    vocab_size: int
    codes: dict[int, NDArray[np.int64]]
    identities: dict[int, NDArray[np.int64]]

    @classmethod
    def of(cls, ngrams: NDArray[np.int32], vocab_size: int) -> NgramTable:
        """Return the table of n-grams (K, L), filled up with -1."""
        lengths = (ngrams >= 0).sum(axis=1)
        codes, identities = {}, {}
        for length in np.unique(lengths).tolist():
            own = np.flatnonzero(lengths == length)
            powers = vocab_size ** np.arange(length - 1, -1, -1)
            numbers = ngrams[own, :length].astype(np.int64) @ powers
            order = numbers.argsort()
            codes[length], identities[length] = numbers[order], vocab_size + own[order]
        return cls(vocab_size, codes, identities)

    def found(self, input_ids: NDArray[np.int64], rows: Rows) -> dict[int, NDArray[np.int64]]:
        """Return length -> (T,) identity of the n-gram of this length that begins at each token, -1 where there is none.

        N-grams lie within one side of a row and hold no special token.

        Args:
            input_ids: (T,) token ids.
            rows: the rows.
        """
        size = len(input_ids)
        side = rows.segments + 2 * (rows.words < 0)
        edges = run_edges(side, rows.cu_seqlens)
        run_end = edges[1:].repeat(np.diff(edges))
        found = {}
        for length, codes in self.codes.items():
            numbers = np.zeros(size, np.int64)
            for place in range(length):
                numbers = numbers * self.vocab_size + input_ids[np.minimum(np.arange(size) + place, size - 1)]
            places = np.minimum(codes.searchsorted(numbers), len(codes) - 1)
            there = (codes[places] == numbers) & (np.arange(size) + length <= run_end) & (rows.words >= 0)
            found[length] = np.where(there, self.identities[length][places], -1)
        return found


def fewest_units(table: NgramTable, input_ids: NDArray[np.int64], rows: Rows, draws: Draws) -> tuple[Units, NDArray[np.int64]]:
    """Cut rows into the fewest units, special tokens included; where several ways are equally good, one is drawn.

    Args:
        table: the n-grams.
        input_ids: (T,) token ids.
        rows: the rows.
        draws: their random choices.

    Returns:
        The units, and (N,) the identity of each.
    """
    found = table.found(input_ids, rows)
    size = len(input_ids)
    # How many units the tokens from each one on make, at least. A loop over tokens, but of a few additions each: over lists, that
    # is faster than over rows in numpy.
    fewest = [0] * (size + 1)
    begins = {length: (identities >= 0).tolist() for length, identities in found.items()}
    for token in range(size - 1, -1, -1):
        least = fewest[token + 1]
        for length, begin in begins.items():
            if begin[token] and fewest[token + length] < least:
                least = fewest[token + length]
        fewest[token] = least + 1
    lengths = _drawn_lengths(np.array(fewest), found, rows, draws)
    first, token, steps = [], 0, lengths.tolist()
    while token < size:
        first.append(token)
        token += steps[token]
    starts = np.array(first, np.int64)
    units = Units(starts, lengths[starts], rows.row_of_token[starts], rows.places[starts])
    identities = input_ids[starts]
    for length, of_length in found.items():
        identities = np.where(units.size == length, of_length[starts], identities)
    return units, identities


def _drawn_lengths(fewest: NDArray[np.int64], found: dict[int, NDArray[np.int64]], rows: Rows, draws: Draws) -> NDArray[np.int64]:
    # (T,) how long a unit that begins at each token is; one of those that leave the fewest units.
    size = len(fewest) - 1
    lengths = np.array([1, *found])
    places = np.minimum(np.arange(size) + lengths[:, None], size)
    begins = np.stack([np.ones(size, bool), *(identities >= 0 for identities in found.values())])
    best = begins & (fewest[places] == fewest[:-1] - 1)
    number = integers(draws.of("tie", rows.row_of_token, rows.places), best.sum(axis=0))
    chosen = best & (best.cumsum(axis=0) - 1 == number)
    drawn: NDArray[np.int64] = lengths[chosen.argmax(axis=0)]
    return drawn
