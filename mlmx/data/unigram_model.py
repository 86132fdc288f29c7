"""The words of a corpus and their unigram language model."""

# G texts of the corpus, N some of its texts, W words of the model, S words to judge

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmx.data.encoding import offsets_of
from mlmx.data.statistic import segment_blocks
from mlmx.data.store import TokenStore
from mlmx.errors import user_error
from mlmx.keyed import uniform


def words_of(store: TokenStore, block: slice) -> Iterator[list[str]]:
    """Yield the words of each of some texts, punctuation included, as they are spelled."""
    for number in range(block.start, block.stop):
        place = divmod(number, store.num_sides)
        text = store.text(*place)
        yield [text[start:end] for start, end in store.words(*place).tolist()]


def is_word(spelling: str) -> bool:
    """Tell whether something is made of letters, with their marks and joiners."""
    categories = [unicodedata.category(character) for character in spelling]
    return any(category[0] == "L" for category in categories) and all(c[0] in "LM" or c == "Cf" for c in categories)


class CorpusWords:
    """The words of letters of a corpus, and how often they occur.

    Attributes:
        num_texts: how many texts there are.
        counts: spelling -> how often it occurs.
        tokens: spelling -> the tokens of its first occurrence.
        texts_with: lower-case word -> in how many texts it occurs, in any spelling.
    """

    def __init__(self, store: TokenStore, *, show_progress: bool) -> None:
        """Count the words of a corpus."""
        self.num_texts = store.num_segments
        self.counts: Counter[str] = Counter()
        self.tokens: dict[str, NDArray[np.int32]] = {}
        self.texts_with: Counter[str] = Counter()
        others: set[str] = set()
        for block in segment_blocks(store, "count words", show_progress=show_progress):
            for segment, spellings in enumerate(words_of(store, block), start=block.start):
                for number, spelling in enumerate(spellings):
                    if spelling not in self.tokens and spelling not in others:
                        if is_word(spelling):
                            self.tokens[spelling] = _tokens(store, segment, number)
                        else:
                            others.add(spelling)
                known = [spelling for spelling in spellings if spelling in self.tokens]
                self.counts.update(known)
                self.texts_with.update({spelling.lower() for spelling in known})


def _tokens(store: TokenStore, segment: int, number: int) -> NDArray[np.int32]:
    # Those of one word of a text.
    offsets, first_tokens = store.arrays["word_offsets"], store.arrays["word_pieces"]
    word = offsets[segment] + number
    is_last = word + 1 == offsets[segment + 1]
    end = store.arrays["piece_offsets"][segment + 1] if is_last else first_tokens[word + 1]
    return np.array(store.arrays["pieces"][first_tokens[word] : end], np.int32)


class UnigramModel:
    """The unigram language model of a corpus, in lower case, and that of a text, smoothed by it.

    Attributes:
        background: (W,) probability of each word: the number of texts with it, over the sum of these numbers.
        frequency: (W,) each word's part of all words of the corpus, those left out included.
        smoothing: weight of the background beside a text, in words.
    """

    def __init__(
        self,
        words: CorpusWords,
        *,
        min_count: int,
        max_text_ratio: float,
        stop_words: Collection[str],
        smoothing: float | None,
    ) -> None:
        """Choose the words.

        Args:
            words: those of the corpus.
            min_count: how often a word occurs, at least.
            max_text_ratio: in which part of the texts, at most.
            stop_words: words in lower case that are left out.
            smoothing: see *Attributes*; None: the mean number of the model's words in a text.

        Raises:
            UserError: if the corpus has no word, or none is left; it names the setting that leaves out most of them.
        """
        spellings: dict[str, list[str]] = {}
        for spelling in words.counts:
            spellings.setdefault(spelling.lower(), []).append(spelling)
        counts = {word: sum(words.counts[spelling] for spelling in same) for word, same in spellings.items()}
        if not counts:
            raise user_error("corpus", "it has no word of letters.")
        most_texts = max_text_ratio * words.num_texts
        chosen = [
            word
            for word, count in counts.items()
            if count >= min_count and words.texts_with[word] <= most_texts and word not in stop_words
        ]
        if not chosen:
            left_out = {
                "min_count": sum(count < min_count for count in counts.values()),
                "max_text_ratio": sum(words.texts_with[word] > most_texts for word in counts),
                "stop_words": sum(word in stop_words for word in counts),
            }
            few, frequent, stopped = left_out.values()
            message = (
                f"leaves no word: min_count={min_count} leaves out {few}, max_text_ratio={max_text_ratio:g} {frequent}, stop_words "
                f"{stopped} of the corpus' {len(counts)} words."
            )
            raise user_error(f"word_sets.{max(left_out, key=left_out.__getitem__)}", message)
        self._numbers = {word: number for number, word in enumerate(chosen)}
        self._tokens = [words.tokens[max(spellings[word], key=words.counts.__getitem__)] for word in chosen]
        texts_with = np.array([words.texts_with[word] for word in chosen], np.float64)
        occurrences = np.array([counts[word] for word in chosen], np.float64)
        self.background = texts_with / texts_with.sum()
        self.frequency = occurrences / sum(counts.values())
        self.smoothing = smoothing or occurrences.sum() / words.num_texts
        self._bounds = self.background.cumsum()[:-1]

    def lexicon(self) -> dict[str, NDArray[Any]]:
        """Return the tokens of all words, each in its most frequent spelling, and where those of each word begin (W+1,)."""
        return {"lexicon_pieces": np.concatenate(self._tokens), "lexicon_offsets": offsets_of(list(map(len, self._tokens)))}

    def numbers(self, spellings: Sequence[str]) -> NDArray[np.int64]:
        """Return the numbers of those words that the model has."""
        found = (self._numbers.get(spelling.lower()) for spelling in spellings)
        return np.array([number for number in found if number is not None], np.int64)

    def from_background(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a word of the background for each key."""
        words: NDArray[np.int64] = self._bounds.searchsorted(uniform(keys), side="right")
        return words

    def log_probability(
        self, texts: Sequence[NDArray[np.int64]], text: NDArray[np.int64], words: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the logarithm of (f + smoothing * background) / (n + smoothing) of words in texts of n words, f of them the word.

        Args:
            texts: (N,) the words of each; at least one has any.
            text: (S,) in which text,
            words: (S,) which word.
        """
        size = len(self.background)
        lengths = np.array([len(one) for one in texts], np.int64)
        there, counts = np.unique(np.arange(len(texts)).repeat(lengths) * size + np.concatenate(texts), return_counts=True)
        asked = text * size + words
        place = np.minimum(there.searchsorted(asked), len(there) - 1)
        count = np.where(there[place] == asked, counts[place], 0)
        probability = (count + self.smoothing * self.background[words]) / (lengths[text] + self.smoothing)
        logarithm: NDArray[np.float64] = np.log(probability)
        return logarithm
