"""Rows cut into tokens and n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from synthetic_rows import CLS, SEP, draws_of, make_rows

from mlmx.data.rows import TokenRows
from mlmx.masking.ngrams import NgramTable, fewest_units

V = 30
A, B, C, D, E = range(10, 15)


def table_of(*ngrams: Sequence[int]) -> NgramTable:
    longest = max(map(len, ngrams))
    return NgramTable.of(np.array([[*ngram, *[-1] * (longest - len(ngram))] for ngram in ngrams], np.int32), V)


def rows_of(*texts: Sequence[int]) -> TokenRows:
    rows = make_rows([[1] * len(text) for text in texts])
    return replace(rows, input_ids=np.array([token for text in texts for token in (CLS, *text, SEP)]))


def units_of(table: NgramTable, rows: TokenRows, epoch: int = 0) -> list[list[int]]:
    """The units of each row, as their tokens; what they are called is checked on the way."""
    units, identities = fewest_units(table, rows.input_ids, rows, draws_of(rows, epoch=epoch))
    np.testing.assert_array_equal(np.concatenate([[0], (units.first + units.size)[:-1]]), units.first)
    np.testing.assert_array_equal(units.index, rows.places[units.first])
    found: list[list[tuple[int, ...]]] = [[] for _ in range(rows.num_rows)]
    for first, size, row, identity in zip(units.first, units.size, units.row, identities, strict=True):
        tokens = tuple(rows.input_ids[first : first + size].tolist())
        if size == 1:
            assert identity == tokens[0] < V
        else:
            length, codes = size, table.codes[size]
            number = int(np.polyval(tokens, V))
            assert table.identities[length][codes.searchsorted(number)] == identity >= V
        found[row].append(tokens)
    return found


def test_the_fewest_units():
    table = table_of([A, B], [B, C], [C, D])
    assert units_of(table, rows_of([A, B, C, D])) == [[(CLS,), (A, B), (C, D), (SEP,)]]
    assert units_of(table, rows_of([A, A, B, C, D, E])) == [[(CLS,), (A,), (A, B), (C, D), (E,), (SEP,)]]
    assert units_of(table, rows_of([A, E])) == [[(CLS,), (A,), (E,), (SEP,)]]
    # Taken from the left, "a b" would leave three units.
    assert units_of(table_of([A, B], [B, C, D]), rows_of([A, B, C, D])) == [[(CLS,), (A,), (B, C, D), (SEP,)]]


def test_an_ngram_is_found_by_its_number_in_the_lexicon():
    table = table_of([C, D], [A, B], [A, B, C])
    rows = rows_of([A, B], [C, D], [A, B, C])
    _, identities = fewest_units(table, rows.input_ids, rows, draws_of(rows))
    assert identities.tolist() == [CLS, V + 1, SEP, CLS, V, SEP, CLS, V + 2, SEP]


def test_of_equally_few_one_is_drawn():
    table, rows = table_of([A, B], [B, A]), rows_of([A, B, A])
    drawn = {tuple(units_of(table, rows, epoch)[0]) for epoch in range(20)}
    assert drawn == {((CLS,), (A, B), (A,), (SEP,)), ((CLS,), (A,), (B, A), (SEP,))}
    assert units_of(table, rows) == units_of(table, rows)


def test_ngrams_cross_neither_rows_nor_sides_nor_special_tokens():
    table = table_of([A, B], [B, SEP], [SEP, CLS])
    rows = rows_of([A], [B], [A, B, A, B])
    segments = rows.segments.copy()
    segments[rows.cu_seqlens[2] + 2 :] = 1
    rows = replace(rows, segments=segments)
    assert units_of(table, rows)[:2] == [[(CLS,), (A,), (SEP,)], [(CLS,), (B,), (SEP,)]]
    assert units_of(table, rows)[2] == [(CLS,), (A,), (B,), (A, B), (SEP,)]


@pytest.mark.parametrize("seed", range(5))
def test_fewest_by_trying_all_ways(seed):
    rng = np.random.default_rng(seed)
    ngrams = [list(ngram) for size in (2, 3) for ngram in product((A, B, C), repeat=size) if rng.random() < 0.3]
    table, known = table_of(*ngrams), {tuple(ngram) for ngram in ngrams}
    texts = [rng.choice((A, B, C), size=7).tolist() for _ in range(6)]

    def fewest(tokens: tuple[int, ...]) -> int:
        if not tokens:
            return 0
        return 1 + min(fewest(tokens[size:]) for size in (1, 2, 3) if size == 1 or tokens[:size] in known)

    assert [len(units) - 2 for units in units_of(table, rows_of(*texts))] == [fewest(tuple(text)) for text in texts]
