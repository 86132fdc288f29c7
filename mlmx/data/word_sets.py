"""Sets of words that are likely for a text, in pairs of which one set is likelier than the other."""

# G texts of the corpus, N texts of a block, M sets, P pairs, S words of the sets

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmx.build import NonNegative, Positive, PositiveFloat, Ratio
from mlmx.data.encoding import offsets_of
from mlmx.data.statistic import Statistic, segment_blocks
from mlmx.data.store import TokenStore
from mlmx.data.text_files import find_files, read_lines
from mlmx.data.unigram_model import CorpusWords, UnigramModel, words_of
from mlmx.keyed import fold, integers, row_keys, stream, uniform

# The Poisson distribution is cut off where nothing is left of it in double precision.
_MOST_WORDS_OVER_MEAN = 40


@dataclass(frozen=True, kw_only=True)
class WordSets(Statistic):
    """Pairs of word sets for each text, drawn from its unigram language model.

    The probability of a word w in a text of n words, f of them w, is (f + smoothing * P(w)) / (n + smoothing), where P(w) is the
    number of texts with w over the sum of these numbers. Words are compared in lower case; what is no word of letters, or left out
    by ``min_count``, ``max_text_ratio`` or ``stop_words``, is none here. A drawn word is kept with probability
    sqrt(subsampling / q) + subsampling / q, where q is its part of the corpus, and otherwise drawn anew. Both sets of a pair have
    the same number of words, which may repeat; pairs of equally likely sets are dropped.

    Collects the lexicon, ``lexicon_pieces`` int32 and ``lexicon_offsets``, where the tokens of each word begin; ``pair_offsets``
    (G+1,), where the pairs of each text begin; ``set_offsets`` (P+1,), where the words of each pair begin; ``set_words`` int32,
    entries of the lexicon, those of the likelier set before those of the other.

    Attributes:
        pairs_per_text: pairs that are drawn for each text that has words.
        mean_words: mean of the Poisson distribution of the size of a set, which is drawn anew where it is 0.
        smoothing: weight of the corpus beside the text, in words; null: the mean number of words in a text.
        min_count: a word occurs so often in the corpus, at least.
        max_text_ratio: and in this part of the texts, at most: more frequent words say nothing of a text.
        subsampling: part of the corpus above which a word is drawn more rarely; null: none.
        stop_words: file with a word in each line, which are left out; null: none.
        seed: of what is drawn.
    """

    pairs_per_text: Positive
    mean_words: PositiveFloat
    smoothing: PositiveFloat | None
    min_count: Positive
    max_text_ratio: Ratio
    subsampling: PositiveFloat | None
    stop_words: str | None
    seed: NonNegative

    def collect(self, store: TokenStore, *, show_progress: bool) -> Iterator[Mapping[str, NDArray[Any]]]:
        model = UnigramModel(
            CorpusWords(store, show_progress=show_progress),
            min_count=self.min_count,
            max_text_ratio=self.max_text_ratio,
            stop_words=self._stop_words(),
            smoothing=self.smoothing,
        )
        yield {**model.lexicon(), "pair_offsets": np.zeros(1, np.int64), "set_offsets": np.zeros(1, np.int64)}
        num_pairs = num_words = 0
        for block in segment_blocks(store, "draw word sets", show_progress=show_progress):
            texts = [model.numbers(words) for words in words_of(store, block)]
            pairs_of_text, sizes, words = self._pairs(model, texts, block.start)
            pair_ends, word_ends = num_pairs + pairs_of_text.cumsum(), num_words + (2 * sizes).cumsum()
            yield {"pair_offsets": pair_ends, "set_offsets": word_ends, "set_words": words.astype(np.int32)}
            num_pairs, num_words = num_pairs + len(sizes), num_words + len(words)

    def _stop_words(self) -> set[str]:
        files = [] if self.stop_words is None else find_files(self.stop_words, "word_sets.stop_words")
        return {line.strip().lower() for file in files for _, line in read_lines(file)}

    def _pairs(
        self, model: UnigramModel, texts: Sequence[NDArray[np.int64]], first: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Draw the pairs of some texts.

        Args:
            model: of the corpus.
            texts: (N,) the words of each.
            first: number of the first text in the corpus.

        Returns:
            (N,) the number of pairs of each text; (P,) the size of the sets of each pair; (S,) the words.
        """
        lengths = np.array([len(text) for text in texts], np.int64)
        text_of_pair = lengths.nonzero()[0].repeat(self.pairs_per_text)
        if not len(text_of_pair):
            return np.zeros(len(texts), np.int64), text_of_pair, text_of_pair
        keys = fold(row_keys(seed=self.seed, epoch=0, row_ids=first + text_of_pair), stream("word sets"))
        keys = fold(keys, np.arange(len(keys)) % self.pairs_per_text)
        sizes = self._sizes(fold(keys, 0))
        # Sets 2p and 2p + 1 are those of pair p; every word of a set has a key of its own.
        set_of_word = np.arange(2 * len(sizes)).repeat(sizes.repeat(2))
        set_starts = offsets_of(sizes.repeat(2))[:-1]
        keys = fold(fold(keys[set_of_word // 2], 1 + set_of_word % 2), np.arange(len(set_of_word)) - set_starts[set_of_word])
        text_of_word = text_of_pair[set_of_word // 2]
        words = self._words(model, texts, text_of_word, keys)
        logarithms = model.log_probability(texts, text_of_word, words)
        # Summed in rising order, so that sets of the same words are equally likely to the bit.
        scores = np.add.reduceat(logarithms[np.lexsort((logarithms, set_of_word))], set_starts).reshape(-1, 2)
        kept, second_first = scores[:, 0] != scores[:, 1], scores[:, 1] > scores[:, 0]
        pair = set_of_word // 2
        order = np.lexsort(((set_of_word % 2) ^ second_first[pair], pair))
        words = words[order][kept[pair]]
        return np.bincount(text_of_pair[kept], minlength=len(texts)), sizes[kept], words

    def _sizes(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        numbers = np.arange(1, int(self.mean_words) + _MOST_WORDS_OVER_MEAN)
        weights = np.cumprod(self.mean_words / numbers)
        bounds = weights.cumsum() / weights.sum()
        sizes: NDArray[np.int64] = 1 + bounds[:-1].searchsorted(uniform(keys), side="right")
        return sizes

    def _words(
        self, model: UnigramModel, texts: Sequence[NDArray[np.int64]], text_of_word: NDArray[np.int64], keys: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        # (S,) drawn from the models of texts, which are mixtures of the text itself and the background.
        ratio = 1.0 if self.subsampling is None else self.subsampling / model.frequency
        acceptance = np.broadcast_to(np.sqrt(ratio) + ratio, model.frequency.shape)
        lengths = np.array([len(text) for text in texts], np.int64)
        starts, own = offsets_of(lengths), np.concatenate(texts)
        words = np.zeros(len(keys), np.int64)
        left, attempt = np.arange(len(keys)), 0
        while len(left):
            length, drawn = lengths[text_of_word[left]], fold(keys[left], attempt)
            from_text = uniform(fold(drawn, 0)) * (length + model.smoothing) < length
            in_text = own[starts[text_of_word[left]] + integers(fold(drawn, 1), length)]
            words[left] = np.where(from_text, in_text, model.from_background(fold(drawn, 1)))
            left = left[uniform(fold(drawn, 2)) >= acceptance[words[left]]]
            attempt += 1
        return words
