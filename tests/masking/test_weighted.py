"""Selection where tokens are not equally likely."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_rows import draws_of, make_rows

from mlmx.masking.select import BernoulliTokens, ExactTokens, FrequencyWeighted, OnePiecePerWord, WholeWords, at_progress
from mlmx.masking.spans import GeometricSpans
from mlmx.schedules import Linear

NUM_ROWS = 20_000
POLICIES = [
    BernoulliTokens(0.3),
    ExactTokens(0.3),
    WholeWords(0.3, False, "fair"),
    OnePiecePerWord(0.3, False),
    GeometricSpans(0.3, 0.2, 10, "paper"),
]


def rows_of_four():
    # Four tokens per row, with the ids 4 to 7 in every row.
    rows = make_rows([[1, 1, 2]] * NUM_ROWS)
    rows.input_ids[rows.words >= 0] = np.tile([4, 5, 6, 7], NUM_ROWS)
    return rows


def rate_of_each(policy, weights) -> np.ndarray:
    rows = rows_of_four()
    selection = FrequencyWeighted(policy, np.array([1.0] * 4 + weights))(rows, draws_of(rows))
    return np.bincount(rows.input_ids[selection.positions], minlength=8)[4:] / NUM_ROWS


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_weights_change_nothing(policy):
    rows = make_rows([[2, 1, 3, 1, 1, 2, 4]] * 50)
    selection = FrequencyWeighted(policy, np.full(1000, 0.25))(rows, draws_of(rows))
    assert selection.positions.tolist() == policy(rows, draws_of(rows)).positions.tolist()


def test_one_token_of_a_row_is_drawn_by_its_weight():
    weights = [1.0, 0.5, 0.25, 0.25]
    assert rate_of_each(ExactTokens(0.25), weights) == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.015)


def test_the_second_one_is_drawn_among_those_that_are_left():
    a, b, c, d = weights = [0.4, 0.3, 0.2, 0.1]
    expected = [w + sum(v * w / (1 - v) for v in weights if v != w) for w in (a, b, c, d)]
    assert rate_of_each(ExactTokens(0.5), weights) == pytest.approx(expected, abs=0.015)


def test_a_word_is_drawn_by_the_mean_weight_of_its_tokens():
    # The words (4), (5) and (6 7); one is drawn, whole.
    rates = rate_of_each(WholeWords(0.25, False, "overshoot"), [0.1, 0.2, 0.5, 0.9])
    assert rates == pytest.approx([0.1, 0.2, 0.7, 0.7], abs=0.015)


def test_tokens_by_themselves_keep_the_rate_of_the_row():
    rates = rate_of_each(BernoulliTokens(0.2), [1.0, 0.5, 0.25, 0.25])
    assert rates == pytest.approx([0.4, 0.2, 0.1, 0.1], abs=0.015)
    # A probability is at most 1.
    assert rate_of_each(BernoulliTokens(0.5), [0.9, 0.01, 0.01, 0.01])[0] == 1.0


def test_small_weights_do_not_run_together():
    weights = [1e-5, 2e-5, 1e-9, 1e-9]
    assert rate_of_each(ExactTokens(0.25), weights) == pytest.approx([1 / 3, 2 / 3, 0, 0], abs=0.015)


def test_a_ratio_that_follows_a_schedule():
    policy = FrequencyWeighted(ExactTokens(Linear(start=1.0, end=0.5)), np.ones(8))
    assert at_progress(policy, 0.5).policy.ratio == 0.75
    assert at_progress(at_progress(policy, 0.5), None).ratio == 0.75
