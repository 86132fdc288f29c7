from __future__ import annotations

import numpy as np
import pytest
from tiny_pairs import MONOLINGUAL, batch_of, make_objective, rows_of


def test_selected_tokens_form_whole_words():
    objective = make_objective("whole_word", mask_ratio=0.3)
    rows = rows_of(objective).take(np.arange(30))
    selected = batch_of(objective, range(30)).tensors["selected"].numpy()
    word = np.where(rows.special, -1, rows.row_of_token * 1000 + rows.words)
    chosen = np.isin(word, np.unique(word[selected]))
    np.testing.assert_array_equal(np.flatnonzero(chosen), selected)
    assert np.bincount(np.unique(word[chosen], return_counts=True)[1]).argmax() > 0
    assert (np.unique(word[chosen], return_counts=True)[1] == 4).any()


def test_a_word_never_shows_part_of_itself():
    objective = make_objective("whole_word", mask_ratio=0.5)
    rows = rows_of(objective).take(np.arange(60))
    batch = batch_of(objective, range(60))
    selected = batch.tensors["selected"].numpy()
    word = rows.row_of_token[selected] * 1000 + rows.words[selected]
    masked = batch.tensors["input_ids"].numpy()[selected] == objective.encoder.vocabulary.mask_id
    for number in np.unique(word):
        assert len(set(masked[word == number].tolist())) == 1


@pytest.mark.parametrize("count_specials", [True, False])
def test_budget(count_specials):
    objective = make_objective("whole_word", mask_ratio=0.3, count_specials=count_specials, corpus=MONOLINGUAL)
    rows = rows_of(objective)
    for row in range(20):
        length = int(rows.lengths[row]) - (0 if count_specials else 2)
        budget = max(1, round(0.3 * length))
        # Words have up to four pieces.
        assert budget <= batch_of(objective, [row]).counts["mlm"] <= budget + 3
