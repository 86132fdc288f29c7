"""A number for each word of many texts, equal for equal words: what overlaps are looked for by.

The words are those of :func:`mlmx.data.words.plain_words`, found without making a string of each, which would take longest.
"""

# N texts, C characters of them all, W words of them all

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mlmx.data.words import JOINERS, separator_points

Hashes = NDArray[np.uint64]

# Odd, so that they can be undone modulo 2^64; otherwise arbitrary.
_MULTIPLIER = 0x9E3779B97F4A7C15
_MIXER = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)
_END = 1  # the number of a line end


def word_hashes(texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Return the (W,) hashes of the words of some texts, and the (N,) number of words of each.

    It needs about 50 bytes of memory for each character of the texts, and least time where all of them are of ASCII.
    """
    if not texts:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    # A line end with spaces around is a word of its own, and tells where a text ends.
    plain = unicodedata.normalize("NFKC", " \n ".join(text.replace("\n", " ") for text in texts)).casefold() + " \n"
    if plain.isascii():
        numbers_C = _numbers_of_characters()[np.frombuffer(plain.encode(), np.uint8)]
    else:
        codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32)
        numbers_C = _numbers_of_characters()[codes[~np.isin(codes, JOINERS)]]
    inside = numbers_C != 0
    starts = np.flatnonzero(inside[1:] & ~inside[:-1]) + 1
    if inside[0]:
        starts = np.concatenate([[0], starts])
    hashes = sums_of_runs(numbers_C, starts)
    hashes ^= hashes >> _SHIFT
    hashes *= _MIXER
    hashes ^= hashes >> _SHIFT
    is_end = numbers_C[starts] == _END
    ends = np.flatnonzero(is_end)
    return hashes[~is_end], np.diff(ends, prepend=-1) - 1


def sums_of_runs(numbers: Hashes, starts: NDArray[np.int64]) -> Hashes:
    """Return a hash of each run of numbers: the number at its place j times the multiplier's j-th power, summed.

    Args:
        numbers: what is hashed; 0 counts for nothing.
        starts: where each run begins, rising; it ends where the next one begins.
    """
    powers, inverses = _powers(1 << (len(numbers) - 1).bit_length() if len(numbers) else 1)
    if not len(starts):
        return np.zeros(0, np.uint64)
    sums: Hashes = np.add.reduceat(numbers * powers[: len(numbers)], starts) * inverses[starts]
    return sums


@cache
def _numbers_of_characters() -> Hashes:
    # Arbitrary ones, that small differences of code points are none; 0 for what stands between words.
    numbers = np.random.default_rng(0).integers(_END + 1, 1 << 63, sys.maxunicode + 1, np.uint64)
    numbers[separator_points()] = 0
    numbers[ord("\n")] = _END
    return numbers


@cache
def _powers(number: int) -> tuple[Hashes, Hashes]:
    # Of the multiplier and of what undoes it, from the 0th on.
    def of(factor: int) -> Hashes:
        factors = np.full(number, factor, np.uint64)
        factors[0] = 1
        return np.cumprod(factors, dtype=np.uint64)

    return of(_MULTIPLIER), of(pow(_MULTIPLIER, -1, 1 << 64))
