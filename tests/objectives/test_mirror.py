"""Mirror-BERT: spans, both directions, and the constant of a collapsed encoder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_pairs import batch_of, make_objective, rows_of

from mlmx.errors import UserError
from mlmx.models.dropout import set_dropout
from mlmx.objectives.mirror import other_views
from mlmx.objectives.views import TERM


def test_a_span_of_long_rows_is_masked_in_the_second_view():
    objective = make_objective("mirror", span_tokens=3, min_tokens=9)
    rows = rows_of(objective, 400).take(np.arange(800))
    batch = batch_of(objective, range(800), rows=rows_of(objective, 400))
    first, second = batch.tensors["input_ids"].numpy().reshape(2, -1)
    np.testing.assert_array_equal(first, rows.input_ids)
    changed = first != second
    assert set(second[changed]) == {objective.encoder.vocabulary.mask_id}
    starts = []
    for row in range(800):
        place = np.flatnonzero(changed[rows.cu_seqlens[row] : rows.cu_seqlens[row + 1]])
        num_ordinary = rows.lengths[row] - 2
        if num_ordinary < 9:
            assert not len(place)
        else:
            assert place.tolist() == [place[0], place[0] + 1, place[0] + 2]
            starts.append((place[0] - 1, num_ordinary - 3))
    # All places are drawn, the first and the last ones too, and none more often.
    assert {start == 0 for start, _ in starts} == {start == last for start, last in starts} == {True, False}
    relative = np.array([(start + 0.5) / (last + 1) for start, last in starts])
    assert abs(relative.mean() - 0.5) < 4 / math.sqrt(12 * len(relative))


def test_no_span():
    objective = make_objective("mirror", span_tokens=0)
    first, second = batch_of(objective, range(20)).tensors["input_ids"].reshape(2, -1)
    assert torch.equal(first, second)


def test_views_that_nothing_tells_apart_are_refused():
    alike = make_objective("mirror", span_tokens=0, equal_views="refuse").train()
    with pytest.raises(UserError, match=r"trainer\.dropout: is 0"):
        alike(batch_of(alike, range(4)))
    set_dropout(alike, 0.1)
    alike(batch_of(alike, range(4)))
    masked = make_objective("mirror", equal_views="refuse").train()
    masked(batch_of(masked, range(4)))


def test_a_span_longer_than_its_row_is_refused():
    with pytest.raises(UserError, match=r"objective\.min_tokens: 2 is less than span_tokens=3"):
        make_objective("mirror", span_tokens=3, min_tokens=2)


@pytest.mark.parametrize("size", [1, 6])
def test_the_loss_of_equal_vectors_has_both_views_of_all_others_as_negatives(size):
    loss, _ = other_views(torch.ones(2 * size, 4) / 2, temperature=0.04)
    assert float(loss) / (2 * size) == pytest.approx(math.log(2 * size - 1), abs=1e-6)


def test_loss_by_hand():
    # Two sentences at right angles; one view of the second lies between them.
    half = math.sqrt(0.5)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [half, half]])
    loss, num_right = other_views(rows, temperature=0.5)
    e = lambda cosine: math.exp(cosine / 0.5)  # noqa: E731
    expected = [
        math.log((e(1) + e(0) + e(half)) / e(1)),
        math.log((e(half) + 2 * e(0)) / e(half)),
        math.log((e(1) + e(0) + e(half)) / e(1)),
        math.log(3 * e(half) / e(half)),
    ]
    assert float(loss) == pytest.approx(sum(expected), rel=1e-6)
    assert int(num_right) == 3  # from the row in between all are equally far, and the first counts


def test_rows_count_in_both_directions():
    objective = make_objective("mirror")
    batch = batch_of(objective, range(5))
    assert batch.counts == {TERM: 10}
    assert int(objective(batch).metrics["accuracy"][1]) == 10
