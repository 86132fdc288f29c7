from __future__ import annotations

import pytest
import torch
from tiny_pairs import VOCABULARY_SIZE, batch_of, make_objective, rows_of

from mlmx.errors import UserError
from mlmx.masking.corrupt import Corruption
from tests.tiny import numbered_tokenizer, scratch_encoder


def test_what_masks_nothing_needs_no_mask_token():
    tokenizer = numbered_tokenizer(VOCABULARY_SIZE)
    tokenizer.mask_token = None
    encoder = scratch_encoder(tokenizer, max_length=128)
    assert encoder.vocabulary.mask_id is None
    objective = make_objective("slm", encoder)
    assert objective(batch_of(objective, range(4))).terms["mlm"] > 0
    with pytest.raises(UserError, match="its tokenizer has no mask token"):
        make_objective("mlm", encoder)


def test_replaced_tokens_are_marked_and_nothing_else_is():
    objective = make_objective("rts", replace_ratio=0.5)
    rows = rows_of(objective).take(torch.arange(48).numpy())
    batch = batch_of(objective, range(48))
    changed = batch.tensors["input_ids"].numpy() != rows.input_ids
    assert (batch.tensors["replaced"].numpy() == changed).all()
    assert not changed[rows.special].any()
    assert set(batch.tensors["input_ids"].numpy()[changed]) <= set(objective.encoder.vocabulary.ordinary_ids)
    assert batch.counts == {"detection": len(rows.input_ids)}


@pytest.mark.parametrize(("parity", "label"), [("paper", 0.0), ("released_code", 1.0)])
def test_a_token_for_which_itself_was_drawn(parity, label):
    objective = make_objective("rts", replace_ratio=0.9, parity=parity).eval()
    # Few words, so that it happens; by the loss, what the objective calls them.
    batch = batch_of(objective, range(48))
    same = batch.tensors["chosen"] & ~batch.tensors["replaced"]
    assert same.any()
    assert (objective.labels == "chosen") == bool(label)
    with torch.no_grad():
        objective.head.logit.weight.zero_()
        objective.head.logit.bias.fill_(2.0)
        loss = objective(batch).terms["detection"].item()
    labels = batch.tensors["chosen"] if label else batch.tensors["replaced"]
    expected = torch.nn.functional.softplus(torch.where(labels, -2.0, 2.0)).sum().item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_realised_rate():
    objective = make_objective("rts")
    rows = rows_of(objective, 3000)
    batch = batch_of(objective, range(3000), rows=rows)
    num_ordinary = int((rows.take(torch.arange(3000).numpy()).words >= 0).sum())
    rate = int(batch.tensors["chosen"].sum()) / num_ordinary
    assert abs(rate - 0.15) < 3 * (0.15 * 0.85 / num_ordinary) ** 0.5


def test_there_is_no_vocabulary_to_predict():
    objective = make_objective("rts")
    assert objective.encoder.head is None
    assert max(p.numel() for p in objective.head.parameters()) == 32 * 32


def test_swapped_language_modelling_never_shows_a_mask():
    objective = make_objective("slm", mask_ratio=0.5)
    assert objective.collator().corruption == Corruption(mask=0.0, random=1.0, keep=0.0)
    batch = batch_of(objective, range(48))
    given = batch.tensors["input_ids"][batch.tensors["selected"]]
    assert not (given == objective.encoder.vocabulary.mask_id).any()
    assert (given != batch.tensors["targets"]).float().mean() > 0.9
