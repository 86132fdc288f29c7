from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from synthetic_rows import FIRST_ORDINARY, MASK, VOCABULARY, draws_of, make_rows, random_sizes

from mlmx.masking.corrupt import Corruption, corrupt
from mlmx.masking.select import BernoulliTokens, WholeWords

ORDINARY = np.arange(FIRST_ORDINARY, VOCABULARY)


def corrupted(rows, selection, mask, random, keep, seed=0):
    return corrupt(
        rows.input_ids,
        selection,
        draws_of(rows, seed),
        corruption=Corruption(mask, random, keep),
        mask_id=MASK,
        ordinary_ids=ORDINARY,
    )


@pytest.fixture(scope="module")
def selected():
    rows = make_rows(random_sizes(4000, 20, 40))
    selection = BernoulliTokens(0.5)(rows, draws_of(rows))
    assert len(selection.positions) > 1e5
    return rows, selection


def test_eighty_ten_ten(selected):
    rows, selection = selected
    ids = corrupted(rows, selection, 0.8, 0.1, 0.1)
    before, after = rows.input_ids[selection.positions], ids[selection.positions]
    n = len(after)
    sigma = 3 * math.sqrt(0.1 * 0.9 / n)
    # A random token is the original one once in so many cases.
    same = 0.1 / len(ORDINARY)
    assert abs((after == MASK).mean() - 0.8) < 3 * math.sqrt(0.8 * 0.2 / n)
    assert abs((after == before).mean() - 0.1 - same) < sigma
    assert abs(((after != before) & (after != MASK)).mean() - 0.1 + same) < sigma


def test_what_is_not_selected_stays(selected):
    rows, selection = selected
    ids = corrupted(rows, selection, 0.8, 0.1, 0.1)
    changed = np.flatnonzero(ids != rows.input_ids)
    assert np.isin(changed, selection.positions).all()
    assert len(changed) > 0


def test_random_tokens_are_ordinary_and_uniform(selected):
    rows, selection = selected
    ids = corrupted(rows, selection, 0.0, 1.0, 0.0)[selection.positions]
    counts = np.bincount(ids, minlength=VOCABULARY)
    assert counts[:FIRST_ORDINARY].sum() == 0
    # Chi-square: mean = number of ids - 1, standard deviation sqrt(2 * mean).
    expected = len(ids) / len(ORDINARY)
    statistic = ((counts[FIRST_ORDINARY:] - expected) ** 2 / expected).sum()
    assert abs(statistic - len(ORDINARY)) < 5 * math.sqrt(2 * len(ORDINARY))


@pytest.mark.parametrize(("parts", "expected"), [((1.0, 0.0, 0.0), "mask"), ((0.0, 0.0, 1.0), "keep")])
def test_extremes_leave_nothing_to_chance(selected, parts, expected):
    rows, selection = selected
    ids = corrupted(rows, selection, *parts)[selection.positions]
    assert (ids == (MASK if expected == "mask" else rows.input_ids[selection.positions])).all()


def test_a_word_is_masked_replaced_or_kept_as_a_whole():
    rows = make_rows([[5, 3, 4, 2]] * 500)
    selection = WholeWords(0.6, False, "overshoot")(rows, draws_of(rows))
    ids = corrupted(rows, selection, 0.4, 0.3, 0.3)
    masked = (ids == MASK)[selection.positions]
    kept = (ids == rows.input_ids)[selection.positions]
    word = selection.row * 10 + rows.words[selection.positions]
    for number in np.unique(word):
        of_word = word == number
        assert masked[of_word].all() or not masked[of_word].any()
        # A replacement may happen to be the original, but hardly for several pieces.
        assert kept[of_word].all() or kept[of_word].sum() <= 1
    # The pieces of a replaced word get tokens of their own.
    replaced = ~masked & ~kept
    assert len(np.unique(ids[selection.positions][replaced])) > 300


def test_worked_by_hand():
    # One row of 3 ordinary tokens, all of them selected, the fate of each following from its draw.
    rows = make_rows([[1, 1, 1]])
    selection = BernoulliTokens(1.0)(rows, draws_of(rows))
    assert selection.positions.tolist() == [1, 2, 3]
    assert corrupted(rows, selection, 1.0, 0.0, 0.0).tolist() == [1, MASK, MASK, MASK, 2]
    assert corrupted(rows, selection, 0.0, 0.0, 1.0).tolist() == rows.input_ids.tolist()


@pytest.mark.parametrize("parts", [(0.8, 0.1, 0.2), (1.1, 0.0, -0.1), (0.0, 0.0, 0.0)])
def test_parts_must_sum_to_one(parts):
    with pytest.raises(ValueError, match="sum to 1"):
        Corruption(*parts)
    with pytest.raises(ValidationError, match="sum to 1"):
        TypeAdapter(Corruption).validate_python(dict(zip(("mask", "random", "keep"), parts, strict=True)))


def test_parts_of_other_names_are_refused():
    with pytest.raises(ValidationError, match="Unexpected keyword"):
        TypeAdapter(Corruption).validate_python({"mask": 0.8, "random": 0.1, "keep": 0.1, "swap": 0.0})
