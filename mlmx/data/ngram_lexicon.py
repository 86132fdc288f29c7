"""The n-grams of a corpus whose tokens occur together far more often than by chance."""

# V vocabulary, N distinct n-grams of one length, K of the lexicon, L tokens of the longest

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmx.build import NonNegative
from mlmx.data.statistic import Statistic, segment_blocks
from mlmx.data.store import TokenStore
from mlmx.data.token_counts import TokenCounts
from mlmx.errors import user_error


@dataclass(frozen=True, kw_only=True)
class NgramLexicon(Statistic):
    """Runs of tokens with the highest t-scores.

    The t-score of an n-gram w of tokens x_i is (p(w) - prod p(x_i)) / sqrt(p(w) (1 - p(w)) / N), where N is the number of n-grams
    of this length in the corpus, and p(w) and p(x_i) are parts of the n-grams and of the tokens. Those that occur no more often
    than by chance are left out; of equal ones the first by their tokens count. While it is collected, the distinct n-grams of one
    length are in memory.

    Collects ``ngrams`` int32, flat (K, L), the tokens of each n-gram filled up with -1: first those of two tokens by falling
    score, then those of three, and so on.

    Attributes:
        num_kept: how many n-grams of two, three, ... tokens, at most.
    """

    num_kept: tuple[NonNegative, ...]

    @staticmethod
    def check_settings(*, num_kept: tuple[int, ...]) -> None:
        """Refuse to keep nothing.

        Raises:
            UserError: if no n-gram of any length is to be kept.
        """
        if not any(num_kept):
            raise user_error("ngrams.num_kept", f"{list(num_kept)} keeps no n-gram; one of the numbers must be above 0.")

    @property
    def longest(self) -> int:
        """Tokens of the longest n-gram."""
        return 1 + len(self.num_kept)

    def collect(self, store: TokenStore, *, show_progress: bool) -> Iterator[Mapping[str, NDArray[Any]]]:
        vocabulary_size = store.meta["vocabulary_size"]
        if vocabulary_size**self.longest >= 2**63:
            raise user_error("ngrams.num_kept", f"n-grams of {self.longest} of {vocabulary_size:,} tokens cannot be counted.")
        (counted,) = TokenCounts().collect(store, show_progress=show_progress)
        probabilities = counted["count"] / counted["count"].sum()
        yield {"ngrams": np.zeros(0, np.int32)}
        for length, num_kept in enumerate(self.num_kept, start=2):
            codes, counts = _counted(store, length, vocabulary_size, show_progress)
            tokens = decoded(codes, length, vocabulary_size)
            scores = t_scores(counts, probabilities[tokens].prod(axis=1))
            best = np.lexsort((codes, -scores))[:num_kept]
            best = best[scores[best] > 0]
            filled = np.full((len(best), self.longest), -1, np.int32)
            filled[:, :length] = tokens[best]
            yield {"ngrams": filled.reshape(-1)}


def t_scores(counts: NDArray[np.int64], by_chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N,) the t-scores of n-grams of one length.

    Args:
        counts: (N,) how often each occurs; all that occur.
        by_chance: (N,) the product of the probabilities of its tokens.
    """
    total = counts.sum()
    probability = counts / total
    variance = np.maximum(probability * (1 - probability), np.finfo(np.float64).tiny)  # 0 where there is only one n-gram
    scores: NDArray[np.float64] = (probability - by_chance) / np.sqrt(variance / max(total, 1))
    return scores


def encoded(tokens: NDArray[np.int64], length: int, vocabulary_size: int) -> NDArray[np.int64]:
    """Return the number of the n-gram that begins at each of some tokens (T,), for all but the last ``length - 1``."""
    codes = np.zeros(max(len(tokens) - length + 1, 0), np.int64)
    for place in range(length):
        codes = codes * vocabulary_size + tokens[place : place + len(codes)]
    return codes


def decoded(codes: NDArray[np.int64], length: int, vocabulary_size: int) -> NDArray[np.int64]:
    """Return the tokens (N, length) of n-grams by their numbers (N,)."""
    powers = vocabulary_size ** np.arange(length - 1, -1, -1)
    return codes[:, None] // powers % vocabulary_size


def _counted(
    store: TokenStore, length: int, vocabulary_size: int, show_progress: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # (N,) the n-grams of one length by their numbers, rising, and how often each occurs.
    codes, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    offsets = store.arrays["piece_offsets"]
    for block in segment_blocks(store, f"count {length}-grams", show_progress=show_progress):
        tokens = store.arrays["pieces"][offsets[block.start] : offsets[block.stop]].astype(np.int64)
        segment = np.arange(block.start, block.stop).repeat(np.diff(offsets[block.start : block.stop + 1]))
        same = segment[length - 1 :] == segment[: max(len(segment) - length + 1, 0)]
        pending.append(np.unique(encoded(tokens, length, vocabulary_size)[same], return_counts=True))
        if sum(len(some) for some, _ in pending) > len(codes):  # so that merging costs no more than counting
            codes, counts = _merged([(codes, counts), *pending])
            pending = []
    return _merged([(codes, counts), *pending])


def _merged(parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    codes, places = np.unique(np.concatenate([codes for codes, _ in parts]), return_inverse=True)
    counts = np.bincount(places, weights=np.concatenate([counts for _, counts in parts]), minlength=len(codes))
    return codes, counts.astype(np.int64)
