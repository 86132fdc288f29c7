from __future__ import annotations

import numpy as np
import pytest
from tiny_pairs import MONOLINGUAL, PARALLEL, batch_of, make_objective, rows_of

from mlmx.errors import UserError


def test_one_piece_of_each_selected_word_and_as_many_as_the_budget_says():
    objective = make_objective("one_piece_per_word", mask_ratio=0.3)
    rows = rows_of(objective)
    for row in range(20):
        taken = rows.take(np.array([row]))
        selected = batch_of(objective, [row]).tensors["selected"].numpy()
        words = taken.words[selected]
        assert len(np.unique(words)) == len(words)
        assert len(words) == min(max(1, round(0.3 * len(taken.input_ids))), taken.words.max() + 1)


@pytest.mark.parametrize(
    ("view", "corpus", "expected"),
    [
        ("corpus", PARALLEL, "pair"),
        ("corpus", MONOLINGUAL, "segment"),
        ("segment", PARALLEL, "segment"),
        ("pair", PARALLEL, "pair"),
    ],
)
def test_views(view, corpus, expected):
    assert make_objective("one_piece_per_word", corpus=corpus, view=view).collator().view == expected


def test_pairs_of_a_monolingual_corpus_are_refused():
    with pytest.raises(UserError, match="not parallel"):
        make_objective("one_piece_per_word", corpus=MONOLINGUAL, view="pair")
