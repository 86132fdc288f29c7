"""Which of some texts occur in a corpus that goes by: as a whole line, or by a long run of words.

Only hashes of the texts are held, whatever the size of the corpus. They have 64 bits: that any of 10^9 runs of a corpus is taken
for one of 10^6 that are looked for has a probability of 10^9 * 10^6 / 2^64 = 5e-5.
"""

# N texts, L words of a text, W words of a batch of lines, R runs of words, all of one length

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mlmx.data.encoding import offsets_of
from mlmx.data.store import TokenStore
from mlmx.data.words import plain_words

Hashes = NDArray[np.uint64]

# Stands between the lines of a batch: no word, so that no run with it in is looked for.
_LINE_END = "\n"
# Odd, so that no bit of a word's hash is lost by multiplication; otherwise arbitrary.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MOST_TABLE_BITS = 27  # 128 MiB
_BATCH_BYTES = 4_000_000


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
        words = [_hashes(plain_words(text)) for text in texts]
        self._num_texts = len(texts)
        # A text without words is found nowhere.
        self._lines = [hash(own.tobytes()) if len(own) else None for own in words]
        self._found_lines = dict.fromkeys((line for line in self._lines if line is not None), False)
        self._runs: dict[int, _Runs] = {}
        lengths = np.array([len(own) for own in words], np.int64)
        for length in range(min_words, ngram_words + 1):
            chosen = np.flatnonzero(lengths >= length if length == ngram_words else lengths == length)
            if len(chosen):
                self._runs[length] = _Runs([words[i] for i in chosen], chosen, length)

    def look(self, lines: Iterable[str]) -> None:
        """Look at more lines of the corpus."""
        stream: list[str] = []
        ends = [0]
        for line in lines:
            stream += plain_words(line)
            stream.append(_LINE_END)
            ends.append(len(stream))
        words_W = _hashes(stream)
        for start, end in pairwise(ends):
            if (line_hash := hash(words_W[start : end - 1].tobytes())) in self._found_lines:
                self._found_lines[line_hash] = True
        if self._runs:
            for length, runs_R in _rolling(words_W, max(self._runs)):
                if length in self._runs:
                    self._runs[length].look(runs_R)

    def overlap(self) -> Overlap:
        """Return what was found so far."""
        whole = np.array([line is not None and self._found_lines[line] for line in self._lines], bool)
        found = Overlap(whole, np.zeros(self._num_texts, np.int64), np.zeros(self._num_texts, np.int64))
        for runs in self._runs.values():
            found.num_runs[:] += np.bincount(runs.texts, minlength=self._num_texts)
            found.num_found[:] += np.bincount(runs.texts[runs.found[runs.numbers]], minlength=self._num_texts)
        return found


class _Runs:
    # The runs of one length that are looked for: the text of each, its number among the distinct ones, and which were found.

    def __init__(self, words: Sequence[Hashes], texts: NDArray[np.int64], length: int) -> None:
        counts = np.array([len(own) for own in words], np.int64)
        *_, (_, runs_R) = _rolling(np.concatenate(words), length)
        # Those that begin in one text and end in another are none.
        inside = np.arange(len(runs_R)) + length <= np.repeat(offsets_of(counts)[1:], counts)[: len(runs_R)]
        self.texts = np.repeat(texts, counts)[: len(runs_R)][inside]
        self.wanted, numbers = np.unique(runs_R[inside], return_inverse=True)
        self.numbers = numbers.astype(np.int64)
        self.found = np.zeros(len(self.wanted), bool)
        # Nearly all runs of a corpus are ruled out by a look into a table.
        bits = min(max(16, (16 * len(self.wanted)).bit_length()), _MOST_TABLE_BITS)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self.wanted >> self._shift] = True

    def look(self, runs_R: Hashes) -> None:
        likely = runs_R[self._table[runs_R >> self._shift]]
        places = np.minimum(np.searchsorted(self.wanted, likely), len(self.wanted) - 1)
        self.found[places[self.wanted[places] == likely]] = True


def _hashes(words: Sequence[str]) -> Hashes:
    # Python's own hashes differ from process to process; nothing but what is found ever leaves this one.
    return np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)


def _rolling(words_W: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    # Yields each length up to the longest, and the hash of the run of so many words that begins at each word.
    runs_R = words_W
    for length in range(1, min(longest, len(words_W)) + 1):
        if length > 1:
            runs_R = runs_R[:-1] * _MULTIPLIER + words_W[length - 1 :]
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
