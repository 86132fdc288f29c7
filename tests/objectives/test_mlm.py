from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from tiny_pairs import MONOLINGUAL, TinyRows, batch_of, make_objective, node_of, rows_of, tiny_encoder
from transformers import BertForMaskedLM

from mlmx.build import build, problems_of
from mlmx.errors import UserError


def test_sparse_loss_equals_the_dense_one_of_transformers(tmp_path):
    objective = make_objective("mlm").eval()
    objective.export(tmp_path)
    dense = BertForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    batch = batch_of(objective, range(10))
    labels = torch.full_like(batch.tensors["input_ids"], -100)
    labels[batch.tensors["selected"]] = batch.tensors["targets"]
    total = 0.0
    cu_seqlens = batch.tensors["cu_seqlens"].tolist()
    for start, end in pairwise(cu_seqlens):
        row = labels[None, start:end]
        if (row != -100).any():
            # Transformers gives the mean over the row's predictions.
            loss = dense(input_ids=batch.tensors["input_ids"][None, start:end], labels=row).loss
            total += loss.item() * int((row != -100).sum())
    assert objective(batch).terms["mlm"].item() == pytest.approx(total, rel=1e-5)
    assert batch.counts["mlm"] == int((labels != -100).sum())


def test_loss_of_a_uniform_model_is_the_log_of_the_vocabulary():
    objective = make_objective("mlm")
    for parameter in objective.parameters():
        torch.nn.init.zeros_(parameter)
    batch = batch_of(objective, range(16))
    expected = batch.counts["mlm"] * math.log(objective.encoder.vocabulary.size)
    assert objective(batch).terms["mlm"].item() == pytest.approx(expected, rel=1e-6)


def test_accuracy_worked_by_hand():
    objective = make_objective("mlm")
    batch = batch_of(objective, range(6))
    answer = int(batch.tensors["targets"][0])

    class Always(torch.nn.Module):
        def forward(self, hidden):
            return F.one_hot(torch.full((len(hidden),), answer), objective.encoder.vocabulary.size).float()

    objective.encoder.head = Always()
    right, count = objective(batch).metrics["accuracy"]
    assert int(right) == batch.tensors["targets"].tolist().count(answer) > 0
    assert int(count) == batch.counts["mlm"]


def test_a_ratio_with_which_nothing_is_predicted_is_refused():
    with pytest.raises(UserError, match=r"objective\.mask_ratio: .* nothing would be predicted"):
        make_objective("mlm", mask_ratio=0.0)


def test_targets_are_what_stood_there_and_the_rest_is_left_alone():
    objective = make_objective("mlm", mask_ratio=0.5)
    rows = rows_of(objective)
    original = rows.take(torch.arange(20).numpy())
    batch = batch_of(objective, range(20))
    selected = batch.tensors["selected"].numpy()
    assert batch.tensors["targets"].tolist() == original.input_ids[selected].tolist()
    changed = set((batch.tensors["input_ids"].numpy() != original.input_ids).nonzero()[0].tolist())
    assert changed <= set(selected.tolist())
    assert not original.special[selected].any()


def test_exact_selection_counts_per_row():
    objective = make_objective("mlm", selection="exact", mask_ratio=0.5)
    rows = rows_of(objective)
    for row in range(8):
        ordinary = int(rows.lengths[row]) - 2
        assert batch_of(objective, [row]).counts["mlm"] == max(1, round(0.5 * ordinary))


def test_all_masked_leaves_masks_only():
    objective = make_objective("mlm", corruption={"mask": 1.0, "random": 0.0, "keep": 0.0})
    batch = batch_of(objective, range(20))
    assert (batch.tensors["input_ids"][batch.tensors["selected"]] == objective.encoder.vocabulary.mask_id).all()


def test_reads_segments_of_any_corpus():
    objective = make_objective("mlm", corpus=MONOLINGUAL)
    assert objective.collator().view == "segment"
    assert len(rows_of(objective)) == 2 * len(TinyRows(objective.encoder.vocabulary, "pair"))


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"mask_ratio": 1.5}, "objective.mask_ratio"),
        ({"selection": "exactly"}, "objective.selection"),
        ({"corruption": {"mask": 0.8, "random": 0.1, "keep": 0.2}}, "objective.corruption"),
        ({"mask_rate": 0.1}, "objective.mask_rate"),
    ],
)
def test_wrong_settings_are_named(settings, where):
    (problem,) = problems_of(node_of("mlm", **settings), "objective")
    assert problem.where == where


def test_a_tokenizer_without_a_mask_is_refused():
    encoder = tiny_encoder()
    encoder.vocabulary = type(encoder.vocabulary)(
        **{name: getattr(encoder.vocabulary, name) for name in ("size", "pad_id", "special_ids", "single", "pair")}, mask_id=None
    )
    with pytest.raises(UserError, match="no mask token"):
        build(node_of("mlm"), encoder, MONOLINGUAL)


def test_an_encoder_without_a_head_gets_one():
    encoder = tiny_encoder()
    encoder.drop_head()
    objective = make_objective("mlm", encoder)
    assert objective.encoder.head is not None
    objective(batch_of(objective, range(4))).terms["mlm"].backward()
