"""Linguistic entity masking's selection, against a direct transcription of the rule with loops, and against simulated numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_rows import draws_of, make_rows, per_row

from mlmx.masking.entities import EntitiesFirst, UnitType
from mlmx.masking.select import OnePiecePerWord
from mlmx.masking.units import random_order

NAMES = UnitType("entity", frozenset({1, 2}), 1.0)
VERBS = UnitType("pos", frozenset({1}), 1.0)


def policy(types=(NAMES,), ratio=0.15, rule="word", order="shared", fill="backfill", parity="paper"):
    return EntitiesFirst(tuple(types), ratio, True, rule, order, fill, parity)


def rows_with_entities(share, num_rows=2000, seed=5):
    # Lines of 8 to 35 words of 1 to 4 pieces, about two on average, as in the simulation whose numbers are used below.
    generator = np.random.default_rng(seed)
    sizes = [generator.choice([1, 2, 3, 4], generator.integers(8, 36), p=[0.4, 0.3, 0.15, 0.15]).tolist() for _ in range(num_rows)]
    entity = [(generator.random(len(row)) < share).astype(int).tolist() for row in sizes]
    return make_rows(sizes, {"entity": entity, "entity_start": entity})


def share_in_entities(rows, selection):
    return rows.tags["entity"][selection.positions].astype(bool).mean()


def num_words_per_row(rows):
    return np.array([rows.words[a:b].max() + 1 for a, b in zip(rows.cu_seqlens[:-1], rows.cu_seqlens[1:], strict=True)])


def walk(sizes, tags, length, types, ratio, order, fill, parity):
    """Return the units that the rule selects in a row, the units being given in the random order of the walk."""
    budget = min(max(1, round(ratio * length)), sum(sizes))

    def type_of(unit):
        return next((i for i, t in enumerate(types) if t.cap_ratio > 0 and tags[t.layer][unit] in t.classes), None)

    pieces = {i: sum(sizes[u] for u in range(len(sizes)) if type_of(u) == i) for i in range(len(types))}
    caps = {i: max(1, round(pieces[i] * t.cap_ratio)) if pieces[i] else 0 for i, t in enumerate(types)}
    used = dict.fromkeys(caps, 0)
    covered = []
    passes = [range(len(types))] if order == "shared" else [[i] for i in range(len(types))]
    for allowed in passes:
        for unit in range(len(sizes)):
            kind = type_of(unit)
            if kind in allowed and used[kind] < caps[kind] and len(covered) < budget:
                used[kind] += 1
                covered.append(unit)
    if fill == "backfill":
        tries = budget - len(covered)
        first = set(covered)
        for unit in range(len(sizes)):
            if tries == 0:
                break
            if unit in first:
                tries -= parity == "released_code"
                continue
            covered.append(unit)
            tries -= 1
    return sorted(covered)


types_strategy = st.lists(
    st.builds(
        UnitType,
        st.sampled_from(["entity", "pos"]),
        st.frozensets(st.integers(1, 2), min_size=1),
        st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=3,
)


@settings(deadline=None, max_examples=300)
@given(
    words=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20),
    types=types_strategy,
    ratio=st.sampled_from([0.15, 0.3, 0.6, 1.0]),
    order=st.sampled_from(["shared", "by_type"]),
    fill=st.sampled_from(["backfill", "none"]),
    parity=st.sampled_from(["paper", "released_code"]),
    seed=st.integers(0, 1000),
)
def test_equals_the_walk_word_by_word(words, types, ratio, order, fill, parity, seed):
    sizes, entity, pos = (list(column) for column in zip(*words, strict=True))
    rows = make_rows([sizes], {"entity": [entity], "pos": [pos], "entity_start": [[1] * len(sizes)]})
    draws = draws_of(rows, seed)
    index = np.arange(len(sizes))
    shuffled = random_order(np.zeros_like(index), draws.of("select", np.zeros_like(index), index))
    tags = {"entity": np.array(entity)[shuffled], "pos": np.array(pos)[shuffled]}
    expected = walk([sizes[i] for i in shuffled], tags, len(rows.words), types, ratio, order, fill, parity)
    selection = policy(types, ratio, "word", order, fill, parity)(rows, draws)
    assert rows.words[selection.positions].tolist() == sorted(shuffled[expected].tolist())


def test_backfill_meets_the_budget_whatever_the_share():
    for share in (0.0, 0.1, 0.2, 0.6, 1.0):
        rows = rows_with_entities(share)
        counts = per_row(rows, policy()(rows, draws_of(rows)).positions)
        budget = np.maximum(1, np.rint(0.15 * rows.lengths))
        np.testing.assert_array_equal(counts, np.minimum(budget, num_words_per_row(rows)))


@pytest.mark.parametrize(("share", "rate"), [(0.1, 0.1405), (0.2, 0.1405), (0.7, 0.150)])
def test_released_code_fills_less(share, rate):
    # Rates that a simulation of the released rule gave.
    rows = rows_with_entities(share, num_rows=6000)
    selection = policy(parity="released_code")(rows, draws_of(rows))
    assert len(selection.positions) / len(rows.words) == pytest.approx(rate, abs=0.0025)


def test_entities_take_most_of_the_budget():
    rows = rows_with_entities(0.2)
    control = OnePiecePerWord(0.15, True)(rows, draws_of(rows))
    assert share_in_entities(rows, control) == pytest.approx(0.2, abs=0.02)
    assert share_in_entities(rows, policy()(rows, draws_of(rows))) == pytest.approx(0.62, abs=0.03)
    rows = rows_with_entities(0.4)
    assert share_in_entities(rows, policy()(rows, draws_of(rows))) == pytest.approx(0.96, abs=0.02)


def test_no_fill_selects_entities_only():
    rows = rows_with_entities(0.05)
    selection = policy(fill="none")(rows, draws_of(rows))
    assert share_in_entities(rows, selection) == 1
    # Rows without an entity select nothing.
    assert per_row(rows, selection.positions).min() == 0


def test_one_piece_per_word_at_most():
    rows = rows_with_entities(0.3)
    for rule in ("word", "span"):
        positions = policy(rule=rule)(rows, draws_of(rows)).positions
        word = rows.row_of_token[positions] * 100 + rows.words[positions]
        assert len(np.unique(word)) == len(word)


def test_a_span_gives_one_piece_a_word_each_its_own():
    # Three names: words 1 to 3 (of 2, 1 and 3 pieces), word 4 (another begins), word 6.
    row = {"entity": [0, 1, 1, 1, 1, 0, 1, 0], "entity_start": [0, 1, 0, 0, 1, 0, 1, 0]}
    rows = make_rows([[1, 2, 1, 3, 1, 1, 1, 1]] * 600, {layer: [values] * 600 for layer, values in row.items()})
    spans = policy(ratio=1.0, rule="span", fill="none")(rows, draws_of(rows))
    assert set(per_row(rows, spans.positions)) == {3}
    words = policy(ratio=1.0, rule="word", fill="none")(rows, draws_of(rows))
    assert set(per_row(rows, words.positions)) == {5}
    # Each of the first name's six pieces (places 2 to 7) is as likely as the others.
    counts = np.bincount(spans.places, minlength=13)
    assert counts[2:8].sum() == 600
    assert np.abs(counts[2:8] - 100).max() < 5 * np.sqrt(100 * 5 / 6)
    assert counts[8] == counts[10] == 600


def test_spans_end_with_their_class_and_their_row():
    tags = {"entity": [[1, 2], [2, 1]], "entity_start": [[1, 0], [0, 1]]}
    rows = make_rows([[1, 1], [1, 1]], tags)
    assert len(policy(ratio=1.0, rule="span", fill="none")(rows, draws_of(rows)).positions) == 4


def test_caps_count_pieces_and_bound_units():
    # Ten names of one piece: a cap of 0.3 lets three of them come first; with no fill, that is all.
    rows = make_rows([[1] * 10] * 20, {"entity": [[1] * 10] * 20, "entity_start": [[1] * 10] * 20})
    capped = policy([UnitType("entity", frozenset({1}), 0.3)], ratio=1.0, fill="none")
    assert set(per_row(rows, capped(rows, draws_of(rows)).positions)) == {3}
    # Of two pieces each, 0.3 * 20 pieces are six: the cap is counted in pieces and used up by words.
    rows = make_rows([[2] * 10] * 20, {"entity": [[1] * 10] * 20, "entity_start": [[1] * 10] * 20})
    assert set(per_row(rows, capped(rows, draws_of(rows)).positions)) == {6}


def test_by_type_exhausts_the_first_type():
    # Budget round(0.15 * 20) = 3: two names and, of eight verbs, one.
    tags = {"entity": [[1, 1] + [0] * 16] * 50, "entity_start": [[1, 1] + [0] * 16] * 50, "pos": [[0, 0] + [1] * 8 + [2] * 8] * 50}
    rows = make_rows([[1] * 18] * 50, tags)
    selection = policy([NAMES, VERBS], order="by_type")(rows, draws_of(rows))
    names = per_row(rows, selection.positions[rows.tags["entity"][selection.positions] > 0])
    verbs = per_row(rows, selection.positions[rows.tags["pos"][selection.positions] == 1])
    assert set(names) == {2}
    assert set(verbs) == {1}
    shared = policy([NAMES, VERBS])(rows, draws_of(rows))
    assert per_row(rows, shared.positions[rows.tags["entity"][shared.positions] > 0]).mean() < 1.5
