"""Which tokens to predict, where every token or word counts the same.

Each policy is a pure function of rows and their keys. Special tokens are never selected.
"""

# S rows, T tokens of all rows, P selected tokens

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlmx.keyed import integers, uniform
from mlmx.masking.units import Rows, Selection, Tokens, Words, budgets, count_before, random_order, rank_in_group, unit_keys


class Policy(Protocol):
    """Selects the tokens to predict."""

    def __call__(self, rows: Rows, keys: NDArray[np.int64]) -> Selection:
        """Return the selection.

        Args:
            rows: the rows.
            keys: (S,) key of each row.
        """


@dataclass(frozen=True, slots=True)
class BernoulliTokens:
    """Each token by itself with probability ``ratio``; short rows may select nothing."""

    ratio: float

    def __call__(self, rows: Rows, keys: NDArray[np.int64]) -> Selection:
        tokens = Tokens.of(rows)
        draws = uniform(unit_keys(keys, tokens.row, tokens.place, "select"))
        return tokens.select(np.flatnonzero(draws < self.ratio))


@dataclass(frozen=True, slots=True)
class ExactTokens:
    """In each row ``max(1, round(ratio * length))`` tokens, all subsets equally likely; ``length`` counts ordinary tokens only."""

    ratio: float

    def __call__(self, rows: Rows, keys: NDArray[np.int64]) -> Selection:
        tokens = Tokens.of(rows)
        budget = budgets(rows, tokens, self.ratio, count_specials=False)
        order = random_order(tokens.row, unit_keys(keys, tokens.row, tokens.place, "select"))
        # Rows stay together under the random order, so `tokens.row` is also the row of each ordered token.
        return tokens.select(np.sort(order[rank_in_group(tokens.row) < budget[tokens.row]]))


@dataclass(frozen=True, slots=True)
class WholeWords:
    """Words in random order until the row's budget of tokens is met, each with all its tokens.

    Attributes:
        ratio: the budget's part of the row.
        count_specials: whether the budget's row length counts special tokens.
        last_word: what becomes of the word that reaches past the budget: ``overshoot`` takes it, ``fair`` takes it with
            probability (missing tokens / its tokens), so that the expected number of tokens equals the budget.
    """

    ratio: float
    count_specials: bool
    last_word: Literal["overshoot", "fair"]

    def __call__(self, rows: Rows, keys: NDArray[np.int64]) -> Selection:
        words = Words.of(rows)
        budget = budgets(rows, words.tokens, self.ratio, count_specials=self.count_specials)[words.row]
        order = random_order(words.row, unit_keys(keys, words.row, words.index, "select"))
        size = words.size[order]
        missing = budget - count_before(size, words.row)
        chosen = missing > 0
        if self.last_word == "fair":
            draws = uniform(unit_keys(keys, words.row, words.index, "last"))[order]
            chosen &= draws * size < missing
        return _all_tokens(words, np.sort(order[chosen]))


@dataclass(frozen=True, slots=True)
class OnePiecePerWord:
    """In each row ``max(1, round(ratio * length))`` words, or all if there are fewer, and of each one token.

    Attributes:
        ratio: the budget's part of the row.
        count_specials: whether the row length counts special tokens.
    """

    ratio: float
    count_specials: bool

    def __call__(self, rows: Rows, keys: NDArray[np.int64]) -> Selection:
        words = Words.of(rows)
        budget = budgets(rows, words.tokens, self.ratio, count_specials=self.count_specials)[words.row]
        order = random_order(words.row, unit_keys(keys, words.row, words.index, "select"))
        return one_token_each(words, np.sort(order[rank_in_group(words.row) < budget]), keys)


def one_token_each(words: Words, chosen: NDArray[np.int64], keys: NDArray[np.int64]) -> Selection:
    """Return of each chosen unit one token, all of its tokens equally likely.

    Args:
        words: the units.
        chosen: (P,) rising indices of units.
        keys: (S,) key of each row.
    """
    row, index = words.row[chosen], words.index[chosen]
    token = words.first[chosen] + integers(unit_keys(keys, row, index, "piece"), words.size[chosen])
    return words.tokens.select(token)


def _all_tokens(words: Words, chosen: NDArray[np.int64]) -> Selection:
    size = words.size[chosen]
    token = np.repeat(words.first[chosen], size) + rank_in_group(np.repeat(np.arange(len(chosen)), size))
    return words.tokens.select(token, np.repeat(words.index[chosen], size))
