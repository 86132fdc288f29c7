from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_rows import draws_of, make_rows, per_row, random_sizes

from mlmx.masking.entities import EntitiesFirst, UnitType
from mlmx.masking.select import BernoulliTokens, ExactTokens, OnePiecePerWord, WholeWords

ENTITIES = (UnitType("entity", frozenset({1}), 1.0),)
POLICIES = {
    "bernoulli": BernoulliTokens(0.15),
    "exact": ExactTokens(0.15),
    "whole_overshoot": WholeWords(0.15, False, "overshoot"),
    "whole_fair": WholeWords(0.15, True, "fair"),
    "one_piece": OnePiecePerWord(0.15, True),
    "entities": EntitiesFirst(ENTITIES, 0.15, True, "word", "shared", "backfill", "paper"),
    "spans": EntitiesFirst(ENTITIES, 0.3, True, "span", "shared", "backfill", "paper"),
}


@pytest.fixture(scope="module")
def many_rows():
    """Over 10^5 tokens."""
    return make_rows(random_sizes(2500, 8, 35))


def tagged(sizes):
    generator = np.random.default_rng(0)
    entity = [generator.integers(0, 2, len(row)).tolist() for row in sizes]
    return make_rows(sizes, {"entity": entity, "entity_start": [generator.integers(0, 2, len(row)).tolist() for row in sizes]})


sizes_strategy = st.lists(st.lists(st.integers(1, 6), max_size=12), min_size=1, max_size=8)


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None, max_examples=60)
@given(sizes=sizes_strategy, seed=st.integers(-(2**40), 2**40))
def test_positions_rise_and_are_never_special(name, sizes, seed):
    rows = tagged(sizes)
    selection = POLICIES[name](rows, draws_of(rows, seed))
    assert (np.diff(selection.positions) > 0).all()
    assert not rows.special[selection.positions].any()
    np.testing.assert_array_equal(selection.row, rows.row_of_token[selection.positions])
    np.testing.assert_array_equal(selection.positions, rows.cu_seqlens[selection.row] + selection.places)


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None, max_examples=60)
@given(sizes=sizes_strategy, cut=st.integers(0, 8))
def test_a_row_is_masked_alike_in_whatever_batch_it_is(name, sizes, cut):
    # That is all that workers, ranks, accumulation and resuming change.
    rows = tagged(sizes)
    whole = POLICIES[name](rows, draws_of(rows))
    cut = min(cut, len(sizes))
    start = rows.cu_seqlens[cut]
    tags = {layer: values[start:] for layer, values in rows.tags.items()}
    part = replace(make_rows(sizes[cut:]), row_ids=rows.row_ids[cut:], tags=tags)
    np.testing.assert_array_equal(POLICIES[name](part, draws_of(part)).positions + start, whole.positions[whole.positions >= start])


@pytest.mark.parametrize("name", POLICIES)
def test_keys_decide(name):
    rows = tagged(random_sizes(50, 8, 20))
    first = POLICIES[name](rows, draws_of(rows)).positions
    assert not np.array_equal(first, POLICIES[name](rows, draws_of(rows, epoch=1)).positions)
    assert not np.array_equal(first, POLICIES[name](rows, draws_of(rows, seed=1)).positions)


@pytest.mark.parametrize("name", POLICIES)
def test_rows_without_words_select_nothing(name):
    rows = tagged([[], [], []])
    assert len(POLICIES[name](rows, draws_of(rows)).positions) == 0


def test_bernoulli_rate_within_three_sigma(many_rows):
    num_tokens = int((~many_rows.special).sum())
    assert num_tokens > 1e5
    selected = len(BernoulliTokens(0.15)(many_rows, draws_of(many_rows)).positions)
    assert abs(selected / num_tokens - 0.15) < 3 * math.sqrt(0.15 * 0.85 / num_tokens)


def test_exact_counts_are_rounded_half_to_even():
    # 0.15 * 10 = 1.5 -> 2, 0.15 * 30 = 4.5 -> 4, 0.15 * 3 = 0.45 -> at least 1; specials do not count.
    rows = make_rows([[1] * 10, [1] * 30, [1] * 3, []])
    assert per_row(rows, ExactTokens(0.15)(rows, draws_of(rows)).positions).tolist() == [2, 4, 1, 0]
    assert per_row(rows, ExactTokens(1.0)(rows, draws_of(rows)).positions).tolist() == [10, 30, 3, 0]
    assert per_row(rows, ExactTokens(0.0)(rows, draws_of(rows)).positions).tolist() == [0, 0, 0, 0]


def test_exact_selects_every_place_equally_often():
    rows = make_rows([[1] * 8] * 8000)
    places = ExactTokens(0.25)(rows, draws_of(rows)).places
    # Each place 2000 times, give or take 5 sigma of Binomial(8000, 1/4).
    assert np.abs(np.bincount(places, minlength=10)[1:9] - 2000).max() < 5 * math.sqrt(8000 * 0.25 * 0.75)


def test_whole_words_are_whole_with_a_word_of_five_pieces():
    sizes = [[5, 1, 2, 5, 1, 1]] * 400
    rows = make_rows(sizes)
    selection = WholeWords(0.3, False, "overshoot")(rows, draws_of(rows))
    mask = np.zeros(len(rows.words), bool)
    mask[selection.positions] = True
    word_ids = rows.row_of_token * 6 + rows.words
    selected = set(word_ids[mask])
    np.testing.assert_array_equal(mask, np.isin(word_ids, list(selected)) & ~rows.special)
    assert any(word % 6 == 0 for word in selected)
    # The budget is round(0.3 * 15) = 4 (4.5 to even): the words before the last do not meet it, all together do.
    counts = per_row(rows, selection.positions)
    assert counts.min() >= 4
    assert counts.max() <= 3 + 5


def test_pieces_of_a_word_form_one_unit():
    rows = make_rows([[5, 2, 3]] * 50)
    selection = WholeWords(0.9, False, "overshoot")(rows, draws_of(rows))
    np.testing.assert_array_equal(selection.units, rows.words[selection.positions])


def test_fair_last_word_meets_the_budget_on_average(many_rows):
    draws = draws_of(many_rows)
    budget = np.rint(0.15 * np.bincount(many_rows.row_of_token[~many_rows.special])).sum()
    overshoot = len(WholeWords(0.15, False, "overshoot")(many_rows, draws).positions)
    fair = len(WholeWords(0.15, False, "fair")(many_rows, draws).positions)
    # Standard deviation of a row's count is below 2 pieces.
    assert abs(fair - budget) < 3 * 2 * math.sqrt(many_rows.num_rows)
    assert overshoot > 1.08 * budget


def test_one_piece_per_word(many_rows):
    selection = OnePiecePerWord(0.15, True)(many_rows, draws_of(many_rows))
    word_ids = many_rows.row_of_token[selection.positions] * 100 + many_rows.words[selection.positions]
    assert len(np.unique(word_ids)) == len(word_ids)
    num_words = np.array(
        [many_rows.words[a:b].max() + 1 for a, b in zip(many_rows.cu_seqlens, many_rows.cu_seqlens[1:], strict=False)]
    )
    budget = np.maximum(1, np.rint(0.15 * many_rows.lengths))
    np.testing.assert_array_equal(per_row(many_rows, selection.positions), np.minimum(budget, num_words))


def test_few_words_of_many_pieces_give_one_piece_each():
    rows = make_rows([[10, 10]])
    assert per_row(rows, OnePiecePerWord(0.5, False)(rows, draws_of(rows)).positions).tolist() == [2]


def test_pieces_of_a_word_are_equally_likely():
    rows = make_rows([[3]] * 9000)
    places = OnePiecePerWord(0.15, False)(rows, draws_of(rows)).places
    assert np.abs(np.bincount(places)[1:] - 3000).max() < 5 * math.sqrt(9000 * 2 / 9)
