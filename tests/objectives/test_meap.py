from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_pairs import TinyRows, make_objective

from mlmx import keyed
from mlmx.data.batch import Batch, BatchContext
from mlmx.errors import UserError
from mlmx.objectives.objective import Objective
from tests.tiny import scratch_encoder, word_tokenizer


def batch_at(objective: Objective, step: int = 0, epoch: int = 0, num_rows: int = 48, **context) -> Batch:
    rows = np.arange(num_rows)
    keys = keyed.row_keys(seed=0, epoch=epoch, row_ids=rows)
    taken = TinyRows(objective.encoder.vocabulary, "segment").take(rows)
    return objective.collator()(taken, BatchContext(keys=keys, step=step, **context))


def masked(objective: Objective, batch: Batch) -> list[list[int]]:
    """The places that are masked, row by row."""
    is_mask = batch.tensors["input_ids"] == objective.encoder.vocabulary.mask_id
    return [row.nonzero().flatten().tolist() for row in is_mask.split(batch.tensors["cu_seqlens"].diff().tolist())]


def test_every_next_token_is_predicted_whatever_is_masked():
    objective, plain = make_objective("meap", input_mask_ratio=0.5), make_objective("clm")
    batch, clean = batch_at(objective), batch_at(plain)
    assert batch.counts == clean.counts
    for name in ("selected", "targets"):
        assert torch.equal(batch.tensors[name], clean.tensors[name])
    changed = batch.tensors["input_ids"] != clean.tensors["input_ids"]
    assert (batch.tensors["input_ids"][changed] == objective.encoder.vocabulary.mask_id).all()
    rows = TinyRows(objective.encoder.vocabulary, "segment").take(np.arange(48))
    assert not changed.numpy()[rows.special].any()
    lengths = batch.tensors["cu_seqlens"].diff().tolist()
    # Half of a row, special tokens counted, as far as there are other tokens.
    assert [len(places) for places in masked(objective, batch)] == [min(length // 2, length - 2) for length in lengths]


def test_without_masks_it_is_causal_language_modelling_to_the_bit():
    objective, plain = make_objective("meap", input_mask_ratio=0.0), make_objective("clm")
    batch, clean = batch_at(objective), batch_at(plain)
    assert all(torch.equal(batch.tensors[name], clean.tensors[name]) for name in clean.tensors)
    assert torch.equal(objective(batch).terms["clm"], plain(clean).terms["clm"])


def test_held_out_rows_have_no_masks():
    objective = make_objective("meap", input_mask_ratio=0.5)
    assert any(masked(objective, batch_at(objective)))
    assert not any(masked(objective, batch_at(objective, held_out=True)))


def test_the_last_token_is_never_masked_even_if_no_special_one_follows():
    words = word_tokenizer(f"w{i}" for i in range(140))
    words._tokenizer.post_processor = None
    encoder = scratch_encoder(words, max_length=128)
    assert encoder.vocabulary.single.num_special == 0
    objective = make_objective("meap", encoder, input_mask_ratio=1.0)
    batch = batch_at(objective)
    lengths = batch.tensors["cu_seqlens"].diff().tolist()
    assert masked(objective, batch) == [list(range(length - 1)) for length in lengths]


def test_each_row_has_its_own_masks_or_all_have_one_of_a_cycle():
    objective = make_objective("meap")
    by_length: dict[int, set[tuple[int, ...]]] = {}
    batch = batch_at(objective)
    lengths = batch.tensors["cu_seqlens"].diff().tolist()
    for length, places in zip(lengths, masked(objective, batch), strict=True):
        by_length.setdefault(length, set()).add(tuple(places))
    assert len(max(by_length.values(), key=len)) > 1
    assert masked(objective, batch_at(objective, epoch=1)) != masked(objective, batch)

    shared = make_objective("meap", shared_mask_cycle=3)
    steps = [masked(shared, batch_at(shared, step=step, epoch=step)) for step in range(6)]
    for places in steps:
        for length in set(lengths):
            assert len({tuple(row) for row, its in zip(places, lengths, strict=True) if its == length}) == 1
    assert steps[:3] == steps[3:]
    assert len({str(places) for places in steps}) == 3


def test_a_tokenizer_without_a_mask_token():
    words = word_tokenizer(f"w{i}" for i in range(140))
    words.mask_token = None
    with pytest.raises(UserError, match=r"no mask token, .* model.add_mask_token=true gives it one"):
        make_objective("meap", scratch_encoder(words, max_length=128))
