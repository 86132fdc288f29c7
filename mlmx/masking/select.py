"""Which tokens to predict, where every token or word counts the same.

Each policy is a pure function of rows and their random choices, which are keyed. Special tokens are never selected.
"""

# S rows, N units (tokens or words), P selected tokens

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlmx.keyed import integers, uniform
from mlmx.masking.units import Draws, Rows, Selection, Units, budgets, first_of_rows, random_order, sums_before
from mlmx.schedules import Schedule, ratio_at


class Policy(Protocol):
    """Selects the tokens to predict; a dataclass.

    Attributes:
        ratio: how many tokens, about; what it is at a progress where it is a schedule: see :func:`at_progress`.
    """

    @property
    def ratio(self) -> float | Schedule: ...

    def __call__(self, rows: Rows, draws: Draws) -> Selection:
        """Return the selection.

        Args:
            rows: the rows.
            draws: their random choices.
        """


AnyPolicy = TypeVar("AnyPolicy", bound=Policy)


def at_progress(policy: AnyPolicy, progress: float | None) -> AnyPolicy:
    """Return a policy whose ratio is a number: that of its schedule at a progress, if it has one.

    Raises:
        UserError: if it has one, and the progress is None: not known when batches are made.
    """
    return with_ratio(policy, ratio_at(policy.ratio, progress)) if isinstance(policy.ratio, Schedule) else policy


def with_ratio(policy: AnyPolicy, ratio: float) -> AnyPolicy:
    """Return a policy that selects by the same rule another part of the tokens."""
    if isinstance(policy, FrequencyWeighted):
        return replace(policy, policy=with_ratio(policy.policy, ratio))
    other: AnyPolicy = replace(policy, ratio=ratio)  # type: ignore[type-var]
    return other


def fixed(ratio: float | Schedule) -> float:
    """Return a ratio that is a number."""
    assert not isinstance(ratio, Schedule), "at_progress comes first"
    return ratio


@dataclass(frozen=True, slots=True)
class BernoulliTokens:
    """Each token by itself with probability ``ratio``; short rows may select nothing.

    Where tokens have weights, that probability is multiplied by the token's weight over the mean weight of its row's ordinary
    tokens, and is at most 1.
    """

    ratio: float | Schedule

    def __call__(self, rows: Rows, draws: Draws) -> Selection:
        # Drawn for special tokens too: that is quicker than leaving them out.
        drawn = uniform(draws.of("select", rows.row_of_token, rows.places))
        ordinary = rows.words >= 0
        limit: float | NDArray[np.float64] = fixed(self.ratio)
        if draws.weights is not None:
            limit = limit * (draws.weights / row_means(rows, draws.weights, ordinary)[rows.row_of_token])
        return Selection.of(rows, ((drawn < limit) & ordinary).nonzero()[0])


@dataclass(frozen=True, slots=True)
class ExactTokens:
    """In each row ``max(1, round(ratio * length))`` tokens, all subsets equally likely; ``length`` counts ordinary tokens only."""

    ratio: float | Schedule

    def __call__(self, rows: Rows, draws: Draws) -> Selection:
        tokens = Units.tokens(rows)
        budget = budgets(tokens.num_tokens(rows), fixed(self.ratio))
        chosen = random_units(tokens, draws.order(tokens), budget)
        chosen.sort()
        return Selection.of(rows, tokens.first[chosen])


@dataclass(frozen=True, slots=True)
class WholeWords:
    """Words in random order until the row's budget of tokens is met, each with all its tokens.

    Attributes:
        ratio: the budget's part of the row.
        count_specials: whether the budget's row length counts special tokens.
        last_word: what becomes of the word that reaches past the budget: ``overshoot`` takes it, ``fair`` takes it with
            probability (missing tokens / its tokens), so that the expected number of tokens equals the budget.
    """

    ratio: float | Schedule
    count_specials: bool
    last_word: Literal["overshoot", "fair"]

    def __call__(self, rows: Rows, draws: Draws) -> Selection:
        words = Units.words(rows)
        order = random_order(words.row, draws.order(words))
        num_tokens = words.num_tokens(rows)
        budget = budgets(rows.lengths if self.count_specials else num_tokens, fixed(self.ratio))
        # Rows stay together under the random order, so `words.row` is also the row of each word in that order.
        size = words.size[order]
        missing = (budget + sums_before(num_tokens))[words.row] - sums_before(size)
        taken = missing > 0
        if self.last_word == "fair":
            taken &= uniform(draws.of("last", words.row, words.index))[order] * size < missing
        chosen = order[taken]
        chosen.sort()
        return _all_tokens(rows, words, chosen)


@dataclass(frozen=True, slots=True)
class OnePiecePerWord:
    """In each row ``max(1, round(ratio * length))`` words, or all if there are fewer, and of each one token.

    Attributes:
        ratio: the budget's part of the row.
        count_specials: whether the row length counts special tokens.
    """

    ratio: float | Schedule
    count_specials: bool

    def __call__(self, rows: Rows, draws: Draws) -> Selection:
        words = Units.words(rows)
        budget = budgets(rows.lengths if self.count_specials else words.num_tokens(rows), fixed(self.ratio))
        chosen = random_units(words, draws.order(words), budget)
        chosen.sort()
        return Selection.of(rows, one_token_each(words, chosen, draws))


@dataclass(frozen=True)
class FrequencyWeighted:
    """What another policy selects where tokens are not equally likely to be selected.

    Attributes:
        policy: the other one.
        weights: (V,) weight of each token id, above 0.
    """

    policy: Policy
    weights: NDArray[np.float64]

    @property
    def ratio(self) -> float | Schedule:
        return self.policy.ratio

    def __call__(self, rows: Rows, draws: Draws) -> Selection:
        return self.policy(rows, draws.weighted(self.weights[rows.input_ids]))


def row_means(rows: Rows, values: NDArray[np.float64], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (S,) the mean over each row of the values (T,) of those tokens that are counted (T,); 1 where none is."""
    row, num_rows = rows.row_of_token[counted], len(rows.lengths)
    sums = np.bincount(row, weights=values[counted], minlength=num_rows)
    nums = np.bincount(row, minlength=num_rows)
    return np.where(nums > 0, sums, 1.0) / np.maximum(nums, 1)


def random_units(units: Units, drawn: NDArray[np.int64], num: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of some units of each row, all subsets equally likely.

    Args:
        units: the units.
        drawn: (N,) key of each unit.
        num: (S,) how many; where there are fewer, all.
    """
    # Rows stay together under the random order, so `units.row` is also the row of each unit in that order.
    return random_order(units.row, drawn)[first_of_rows(units.row, num)]


def one_token_each(units: Units, chosen: NDArray[np.int64], draws: Draws) -> NDArray[np.int64]:
    """Return the position (P,) of one token of each chosen unit, all of its tokens equally likely.

    Args:
        units: the units.
        chosen: (P,) indices of units.
        draws: the rows' random choices.
    """
    drawn = draws.of("piece", units.row[chosen], units.index[chosen])
    return units.first[chosen] + integers(drawn, units.size[chosen])


def _all_tokens(rows: Rows, words: Units, chosen: NDArray[np.int64]) -> Selection:
    size = words.size[chosen]
    positions = np.arange(size.sum()) + (words.first[chosen] - sums_before(size)).repeat(size)
    return Selection.of(rows, positions, units=words.index[chosen].repeat(size))
