"""Which of some texts occur in a corpus that goes by: as a whole line, or by a long run of words.

Only hashes of the texts are held, whatever the size of the corpus. They have 64 bits: that any of 10^9 runs of a corpus is taken
for one of 10^6 that are looked for has a probability of 10^9 * 10^6 / 2^64 = 5e-5.
"""

# N texts, L words of a text, W words of a batch of lines, R runs of words, all of one length

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from mlmx.data.encoding import offsets_of
from mlmx.data.store import TokenStore
from mlmx.data.word_hashes import Hashes, sums_of_runs, word_hashes

# Odd, so that no bit of a word's hash is lost by multiplication; otherwise arbitrary.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MOST_TABLE_BITS = 27  # 128 MiB
_BATCH_BYTES = 4_000_000
_BLOCK_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class Overlap:
    """What of each text was found.

    Attributes:
        whole: (N,) whether the text is a whole line of the corpus.
        num_runs: (N,) runs of words that were looked for.
        num_found: (N,) how many of them occur.
    """

    whole: NDArray[np.bool_]
    num_runs: NDArray[np.int64]
    num_found: NDArray[np.int64]


class OverlapSearch:
    """Looks for texts in a corpus, after normalisation (:func:`mlmx.data.words.plain_words`).

    Args:
        texts: what to look for.
        ngram_words: n: of a text of at least so many words, every run of n words is looked for.
        min_words: a shorter text is looked for as one run if it has at least so many words; below, only as a whole line.
    """

    def __init__(self, texts: Sequence[str], *, ngram_words: int, min_words: int) -> None:
        words_W, counts = _words(texts)
        self._num_texts = len(texts)
        # A text without words is found nowhere.
        filled = np.flatnonzero(counts)
        self._lines = _Wanted(sums_of_runs(words_W, offsets_of(counts)[filled]), filled)
        self._runs: dict[int, _Wanted] = {}
        for length in range(min_words, ngram_words + 1):
            chosen = np.repeat(counts >= length if length == ngram_words else counts == length, counts)
            if chosen.any():
                self._runs[length] = _runs_of(words_W[chosen], np.repeat(np.arange(len(texts)), counts)[chosen], length)

    def look(self, lines: Sequence[str]) -> None:
        """Look at more lines of the corpus."""
        # Lines of ASCII by themselves, since they need no normalisation.
        ascii_lines, others = ([line for line in lines if line.isascii() is plain] for plain in (True, False))
        for block in chain(_blocks(ascii_lines), _blocks(others)):
            words_W, counts = word_hashes(block)
            self._lines.look(sums_of_runs(words_W, offsets_of(counts)[:-1][counts > 0]))
            if self._runs:
                # No run goes on from line to line.
                left_W = np.repeat(np.cumsum(counts), counts) - np.arange(len(words_W))
                for length, runs_R in _rolling(words_W, max(self._runs)):
                    if length in self._runs:
                        self._runs[length].look(runs_R[left_W[: len(runs_R)] >= length])

    def overlap(self) -> Overlap:
        """Return what was found so far."""
        whole = np.zeros(self._num_texts, bool)
        whole[self._lines.owners] = self._lines.was_found()
        found = Overlap(whole, np.zeros(self._num_texts, np.int64), np.zeros(self._num_texts, np.int64))
        for runs in self._runs.values():
            found.num_runs[:] += np.bincount(runs.owners, minlength=self._num_texts)
            found.num_found[:] += np.bincount(runs.owners[runs.was_found()], minlength=self._num_texts)
        return found


class _Wanted:
    # Hashes that are looked for, the text that each belongs to, and which of them were found.

    def __init__(self, hashes: Hashes, owners: NDArray[np.int64]) -> None:
        self.owners = owners
        self._distinct, self._numbers = np.unique(hashes, return_inverse=True)
        self._found = np.zeros(len(self._distinct), bool)
        # Nearly all of a corpus is ruled out by a look into a table.
        bits = min(max(16, (16 * len(self._distinct)).bit_length()), _MOST_TABLE_BITS)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._distinct >> self._shift] = True

    def look(self, hashes: Hashes) -> None:
        likely = hashes[self._table[hashes >> self._shift]]
        if len(likely):
            places = np.minimum(np.searchsorted(self._distinct, likely), len(self._distinct) - 1)
            self._found[places[self._distinct[places] == likely]] = True

    def was_found(self) -> NDArray[np.bool_]:
        return self._found[self._numbers]


def _runs_of(words_W: Hashes, owners_W: NDArray[np.int64], length: int) -> _Wanted:
    *_, (_, runs_R) = _rolling(words_W, length)
    # Those that begin in one text and end in another are none.
    inside = owners_W[: len(runs_R)] == owners_W[length - 1 :]
    return _Wanted(runs_R[inside], owners_W[: len(runs_R)][inside])


def _words(texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
    # Of all texts, in their order.
    parts = [word_hashes(block) for block in _blocks(texts)] or [word_hashes([])]
    return np.concatenate([words for words, _ in parts]), np.concatenate([counts for _, counts in parts])


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    # So many lines at a time that the numbers made of them stay in the cache.
    block: list[str] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= _BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _rolling(words_W: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    # Yields each length up to the longest, and the hash of the run of so many words that begins at each word; it holds until the
    # next one is asked for.
    runs_R = words_W.copy()
    for length in range(1, min(longest, len(words_W)) + 1):
        if length > 1:
            runs_R = runs_R[:-1]
            runs_R *= _MULTIPLIER
            runs_R += words_W[length - 1 :]
        yield length, runs_R


def batches_of_lines(store: TokenStore) -> Iterator[list[str]]:
    """Yield the texts of a store, a few million bytes at a time."""
    offsets = store.arrays["text_offsets"]
    start = 0
    while start < store.num_segments:
        stop = max(int(np.searchsorted(offsets, offsets[start] + _BATCH_BYTES, side="right")) - 1, start + 1)
        data = store.arrays["text"][offsets[start] : offsets[stop]].tobytes()
        cuts = (offsets[start : stop + 1] - offsets[start]).tolist()
        yield [data[first:last].decode("utf-8") for first, last in pairwise(cuts)]
        start = stop
