from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_pairs import STATISTICS, batch_of, make_objective, rows_of

from mlmx.data.batch import BatchContext
from mlmx.errors import UserError
from mlmx.keyed import row_keys
from tests.tiny import numbered_tokenizer, scratch_encoder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def arranged_rows(objective, rows, epoch=0):
    keys = row_keys(seed=0, epoch=epoch, row_ids=rows.row_ids)
    return objective.collator().arranged(rows, BatchContext(keys=keys))


def sides(rows, number):
    """The token ids of the set and of the text of a row."""
    start, end = rows.cu_seqlens[number : number + 2]
    inner = ~rows.special[start:end]
    ids, side = rows.input_ids[start:end], rows.segments[start:end]
    return ids[inner & (side == 0)].tolist(), ids[inner & (side == 1)].tolist()


def lexicon(objective):
    sets = objective.collator().sets
    return [tuple(word) for word in np.split(sets["lexicon_pieces"], sets["lexicon_offsets"][1:-1])]


def test_both_members_of_a_pair_have_the_same_text_and_masks():
    objective = make_objective("prop", mask_ratio=0.4)
    rows, batch = rows_of(objective).take(np.arange(48)), batch_of(objective, range(48))
    arranged = arranged_rows(objective, rows)
    better, worse = batch.tensors["pairs"].numpy()
    assert batch.counts["ranking"] == len(better) > 40
    given = replace(arranged, input_ids=batch.tensors["input_ids"].numpy())
    words = set(lexicon(objective))
    for first, second in zip(better, worse, strict=True):
        row = np.flatnonzero(rows.row_ids == arranged.row_ids[first])[0]
        text = rows.input_ids[rows.cu_seqlens[row] + 1 : rows.cu_seqlens[row + 1] - 1].tolist()
        likely, unlikely = (sides(arranged, number) for number in (first, second))
        assert likely[1] == unlikely[1] == text
        assert likely[0] != unlikely[0]
        assert sides(given, first) == (likely[0], sides(given, second)[1])
        assert sides(given, second)[0] == unlikely[0]
        for number in (first, second):
            start, end = arranged.cu_seqlens[number : number + 2]
            of_set = ~arranged.special[start:end] & (arranged.segments[start:end] == 0)
            found = np.split(arranged.input_ids[start:end][of_set], np.flatnonzero(np.diff(arranged.words[start:end][of_set])) + 1)
            assert {tuple(word) for word in found} <= words


def test_only_words_of_the_text_are_masked():
    objective = make_objective("prop", mask_ratio=0.5)
    rows, batch = rows_of(objective).take(np.arange(48)), batch_of(objective, range(48))
    arranged = arranged_rows(objective, rows)
    selected = batch.tensors["selected"].numpy()
    assert (arranged.segments[selected] == 1).all()
    assert not arranged.special[selected].any()
    np.testing.assert_array_equal(batch.tensors["targets"], arranged.input_ids[selected])
    changed = (batch.tensors["input_ids"].numpy() != arranged.input_ids).nonzero()[0]
    assert set(changed) <= set(selected)
    assert len(selected) == batch.counts["mlm"] > 0.3 * (~arranged.special & (arranged.segments == 1)).sum()


def test_another_epoch_draws_another_pair_of_the_text():
    objective = make_objective("prop")
    rows = rows_of(objective).take(np.arange(24))
    drawn = [arranged_rows(objective, rows, epoch).input_ids.tolist() for epoch in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_text_that_is_too_long_gives_way_to_its_set():
    wide = make_objective("prop", mask_ratio=0.9)
    encoder = scratch_encoder(numbered_tokenizer(wide.encoder.vocabulary.size), max_length=24)
    narrow = make_objective("prop", encoder, mask_ratio=0.9)
    rows = rows_of(wide).take(np.arange(48))
    whole, cut = arranged_rows(wide, rows), arranged_rows(narrow, rows)
    assert whole.lengths.max() > 24 == cut.lengths.max()
    for number in range(cut.num_rows):
        (given, text), (all_of_it, full) = sides(cut, number), sides(whole, number)
        assert text == full[: len(text)]
        assert given == all_of_it[:10]  # half of the room beside three special tokens
    batch = batch_of(narrow, range(48))
    selected = batch.tensors["selected"].numpy()
    np.testing.assert_array_equal(batch.tensors["targets"], cut.input_ids[selected])
    assert (cut.segments[selected] == 1).all()
    assert not cut.special[selected].any()


def test_a_text_without_a_pair_is_masked_all_the_same(monkeypatch):
    objective = make_objective("prop", mask_ratio=0.5)
    sets = dict(objective.collator().sets)
    offsets = sets["pair_offsets"].copy()
    offsets[1:4] = offsets[0]  # the first three texts have none
    objective._collator = replace(objective.collator(), sets=sets | {"pair_offsets": offsets})
    batch = batch_of(objective, range(5))
    assert batch.counts["ranking"] == 2
    assert batch.num_rows == 7
    arranged = arranged_rows(objective, rows_of(objective).take(np.arange(5)))
    assert [len(sides(arranged, number)[0]) > 0 for number in range(7)] == [False] * 3 + [True] * 4
    output = objective(batch)
    assert tuple(map(int, output.metrics["paired_ratio"])) == (2, 5)
    alone = batch_of(objective, [0])
    assert alone.counts["ranking"] == 0
    assert objective(alone).terms["ranking"] == 0
    assert objective(alone).terms["mlm"] > 0


@pytest.mark.parametrize(
    ("parity", "gap", "loss"),
    [
        ("paper", 2.0, 0.0),
        ("paper", -1.0, 2.0),
        # 1 - tanh(gap / 2): the released code takes the softmax of both before it compares them.
        ("released_code", 2.0, 0.2384),
        ("released_code", 0.0, 1.0),
    ],
)
def test_the_loss_of_a_pair(parity, gap, loss):
    objective = make_objective("prop", parity=parity)
    assert objective.ranking_loss(torch.tensor([[gap + 3.0], [3.0]])).item() == pytest.approx(loss, abs=1e-4)


def test_scores_are_of_the_first_vector_of_each_row():
    objective = make_objective("prop").eval()
    batch = batch_of(objective, range(16))
    with torch.no_grad():
        hidden = objective.encoder(batch)
        output = objective(batch)
        first = hidden[batch.tensors["cu_seqlens"][:-1].long()]
        scores = objective.scorer[2](torch.tanh(objective.scorer[0](first)))[:, 0]
    better, worse = batch.tensors["pairs"]
    expected = (1 - scores[better] + scores[worse]).clamp(min=0).sum()
    assert output.terms["ranking"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert int(output.metrics["ranking_accuracy"][0]) == int((scores[better] > scores[worse]).sum())


def test_a_model_learns_which_set_is_likelier_and_reads_the_text_for_it():
    objective = make_objective("prop", mask_ratio=0.0).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for step in range(50):
        optimizer.zero_grad()
        objective(batch_of(objective, range(32), epoch=step)).terms["ranking"].backward()
        optimizer.step()
    objective.eval()
    rows = rows_of(objective).take(np.arange(32))
    context = BatchContext(keys=row_keys(seed=0, epoch=99, row_ids=rows.row_ids))

    def accuracy(rows):
        right, total = objective(objective.collator()(rows, context)).metrics["ranking_accuracy"]
        return float(right / total)

    assert accuracy(rows) > 0.75
    # Beside the sets of another text, what is likelier for that one cannot be seen.
    assert accuracy(replace(rows, sources=np.roll(rows.sources, 7))) < accuracy(rows) - 0.1


def test_rows_of_no_corpus_have_no_sets():
    objective = make_objective("prop")
    rows = replace(rows_of(objective).take(np.arange(2)), sources=None)
    with pytest.raises(UserError, match="needs word sets"):
        arranged_rows(objective, rows)


def test_the_sets_are_shared_by_objectives_of_the_same_setting():
    make_objective("prop")
    before = len(STATISTICS)
    make_objective("prop", margin=2.0)
    assert len(STATISTICS) == before
