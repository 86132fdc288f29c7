"""Ranking documents by the words they share with a query: what a retriever has to beat."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlmx.build import NonNegativeFloat, Ratio
from mlmx.data.progress import progress_bar
from mlmx.data.words import split_words
from mlmx.errors import nearest, user_error
from mlmx.tasks.search import Neighbours
from mlmx.training.parallel import current


class BM25:
    """BM25 as Lucene computes it, by ``bm25s`` (Lù, arXiv 2407.03618).

    Words are lower-cased and without punctuation; in languages that do not write spaces between words, what stands between spaces
    is one word.

    Args:
        k1: how much a word counts that occurs again; BEIR's baseline (Thakur et al., arXiv 2104.08663) has 0.9.
        b: how much long documents are held back, in [0, 1]; BEIR's baseline has 0.4.
        stopwords: the language of a list of words to leave out (``english``, ``german``, ...), one of ``bm25s``; None leaves none
            out.
        stemmer: the language of a Snowball stemmer (``english``, ``german``, ...), which needs ``pip install 'mlmx[stem]'``; None
            takes words as they are.
    """

    def __init__(self, *, k1: NonNegativeFloat, b: Ratio, stopwords: str | None, stemmer: str | None) -> None:
        self.k1 = k1
        self.b = b
        self._stopwords = frozenset(_stopwords(stopwords) if stopwords is not None else ())
        self._stem = _stemmer(stemmer) if stemmer is not None else list

    def search(self, queries: Sequence[str], documents: Sequence[str], num_results: int) -> Neighbours:
        """Return the best documents of each query, best first; one that shares no word with it scores 0."""
        import bm25s

        # It gives itself the level at which it tells everything.
        logging.getLogger("bm25s").setLevel(logging.WARNING)
        vocabulary: dict[str, int] = {}
        is_main = current().is_main
        read = progress_bar(documents, "BM25: read documents", total=len(documents), show=is_main)
        ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in self.words(text)] for text in read]
        if not vocabulary:
            raise user_error("task data", "no document has a word.")
        model = bm25s.BM25(k1=self.k1, b=self.b, method="lucene")
        model.index(bm25s.tokenization.Tokenized(ids, vocabulary), show_progress=False)
        num_results = min(num_results, len(documents))
        indices = np.tile(np.arange(num_results), (len(queries), 1))
        scores = np.zeros((len(queries), num_results), np.float32)
        for i, query in enumerate(progress_bar(queries, "BM25: search, queries", total=len(queries), show=is_main)):
            if known := [word for word in self.words(query) if word in vocabulary]:
                found = model.retrieve([known], k=num_results, show_progress=False, backend_selection="numpy")
                indices[i], scores[i] = found.documents[0], found.scores[0]
        return Neighbours(indices, scores)

    def words(self, text: str) -> list[str]:
        """Return what is counted of a text."""
        text = text.lower()
        words = (text[start:end] for start, end in split_words(text))
        return self._stem([word for word in words if word not in self._stopwords and any(map(str.isalnum, word))])


def _stopwords(language: str) -> Sequence[str]:
    from bm25s import stopwords

    prefix = "STOPWORDS_"
    lists = {name.removeprefix(prefix).lower(): words for name, words in vars(stopwords).items() if name.startswith(prefix)}
    lists["english"] = lists.pop("en")
    if language not in lists:
        message = f"{language!r} is none of {', '.join(sorted(lists))}."
        raise user_error("task.bm25.stopwords", message, nearest(language, lists))
    words: Sequence[str] = lists[language]
    return words


def _stemmer(language: str) -> Callable[[list[str]], list[str]]:
    try:
        import Stemmer
    except ImportError as error:
        message = "PyStemmer is not installed; install it with: pip install 'mlmx[stem]'."
        raise user_error("task.bm25.stemmer", message) from error
    try:
        stemmer: Any = Stemmer.Stemmer(language)
    except KeyError as error:
        known = Stemmer.algorithms()
        raise user_error("task.bm25.stemmer", f"{language!r} is none of {', '.join(known)}.", nearest(language, known)) from error
    stem: Callable[[list[str]], list[str]] = stemmer.stemWords
    return stem
