"""Which tokens to predict, where they come in spans of words."""

# S rows, T tokens of all rows, N anchors (words or tokens), W words, P selected tokens

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.keyed import uniform
from mlmx.masking.select import fixed
from mlmx.masking.units import Draws, Rows, Selection, Units, random_order, ranges, sums_before
from mlmx.schedules import Schedule


@dataclass(frozen=True, slots=True)
class GeometricSpans:
    """Spans of words, until ``ceil(ratio * ordinary tokens)`` tokens of a row are selected.

    A span begins with a word that is not selected yet, and its length in words is drawn from a geometric distribution that is cut
    off at ``max_words``. Where spans overlap or touch they become one, which is corrupted as one.

    Attributes:
        ratio: the budget's part of a row's ordinary tokens.
        geometric_p: the parameter: a span of k words is drawn with a probability proportional to ``(1 - geometric_p) ** k``.
        max_words: words of the longest span.
        parity: ``paper``: all words are equally likely to begin a span, and all words are whole, so that the last one may reach
            past the budget; ``released_code``: the first word is that of a random token, so that long words begin more spans, and
            the last span is cut at the budget, within a word if need be.
    """

    ratio: float | Schedule
    geometric_p: float
    max_words: int
    parity: Literal["paper", "released_code"]

    def __call__(self, rows: Rows, draws: Draws) -> Selection:
        words = Units.words(rows)
        anchors = words if self.parity == "paper" else Units.tokens(rows)
        # Drawing again whenever the drawn anchor is selected is to go through all anchors in random order, without the selected.
        order = random_order(anchors.row, draws.order(anchors))
        first, row = anchors.first[order], anchors.row[order]
        num_words = self._lengths(draws.of("length", row, anchors.index[order]))
        word_of_token = (words.first.searchsorted(np.arange(len(rows.words)), side="right") - 1).astype(np.int64)
        last_word = _last_reached(words)
        missing = np.ceil(fixed(self.ratio) * words.num_tokens(rows)).astype(np.int64)
        selected = np.zeros(len(rows.words), bool)
        while len(row):
            # Each row that is not done gives its next anchor: one span per row and round.
            left = ((missing[row] > 0) & ~selected[first]).nonzero()[0]
            first, row, num_words = first[left], row[left], num_words[left]
            heads = _run_heads(row)
            begin = word_of_token[first[heads]]
            end = np.minimum(begin + num_words[heads] - 1, last_word[begin])
            taken = self._within_budget(words, begin, end, missing[row[heads]], selected)
            selected[taken] = True
            missing -= np.bincount(rows.row_of_token[taken], minlength=len(missing))
        positions = selected.nonzero()[0]
        heads = _run_heads(positions - np.arange(len(positions)), rows.row_of_token[positions])
        sizes = np.diff(heads, append=len(positions))
        return Selection.of(rows, positions, units=rows.places[positions[heads]].repeat(sizes))

    def _lengths(self, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        weights = (1 - self.geometric_p) ** np.arange(self.max_words)
        bounds = weights.cumsum() / weights.sum()
        # The last bound is 1 but for rounding, and draws are below 1.
        lengths: NDArray[np.int64] = 1 + bounds[:-1].searchsorted(uniform(drawn), side="right").astype(np.int64)
        return lengths

    def _within_budget(
        self,
        words: Units,
        begin: NDArray[np.int64],
        end: NDArray[np.int64],
        missing: NDArray[np.int64],
        selected: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """Return the tokens that spans add, (P,).

        Args:
            words: all words.
            begin: the first word of each span.
            end: its last word.
            missing: how many tokens its row may still select.
            selected: (T,) what is selected already.
        """
        count = end - begin + 1
        word = ranges(begin, count)
        size = words.size[word]
        tokens = ranges(words.first[word], size)
        span = np.arange(len(begin)).repeat(count).repeat(size)
        new = ~selected[tokens]
        before = sums_before(new.astype(np.int64))
        before -= before[sums_before(np.bincount(span, minlength=len(begin)))][span]
        if self.parity == "paper":
            before = before[sums_before(size)].repeat(size)  # a word is taken as a whole, or not at all
        taken: NDArray[np.int64] = tokens[new & (before < missing[span])]
        return taken


def _run_heads(*values: NDArray[np.int64]) -> NDArray[np.int64]:
    # Where any of the values differs from the one before it.
    heads = np.ones(len(values[0]), bool)
    heads[1:] = np.any([np.diff(value) != 0 for value in values], axis=0)
    return heads.nonzero()[0]


def _last_reached(words: Units) -> NDArray[np.int64]:
    # (W,) the last word that a span from each one can reach: words that follow each other without a special token in between.
    heads = _run_heads(words.first - sums_before(words.size), words.row)
    sizes = np.diff(heads, append=len(words.first))
    last: NDArray[np.int64] = (heads + sizes - 1).repeat(sizes)
    return last
