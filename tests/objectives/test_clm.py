from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_pairs import batch_of, make_objective, rows_of, tiny_encoder
from transformers import AutoModelForMaskedLM

from mlmx.data.batch import Batch
from mlmx.models.encoder import Encoder
from mlmx.models.load import load_encoder
from mlmx.objectives.objective import Objective


def test_the_loss_is_that_of_a_causal_model_of_transformers(tmp_path):
    # Row by row, by BERT as a decoder, whose own loss shifts the labels.
    objective = make_objective("clm").eval()
    batch = batch_of(objective, range(6))
    objective.encoder.direct("causal")
    objective.export(tmp_path)
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    rows = batch.tensors["input_ids"].split(batch.tensors["cu_seqlens"].diff().tolist())
    with torch.no_grad():
        expected = sum(F.cross_entropy(plain(row[None]).logits[0, :-1], row[1:], reduction="sum").item() for row in rows)
        assert objective(batch).terms["clm"].item() == pytest.approx(expected, rel=1e-5)
    assert batch.counts == {"clm": sum(len(row) - 1 for row in rows)}


def test_nothing_is_predicted_across_rows():
    objective = make_objective("clm")
    batch = batch_of(objective, range(8))
    cls, sep = (objective.encoder.tokenizer.convert_tokens_to_ids(token) for token in ("[CLS]", "[SEP]"))
    assert not (batch.tensors["targets"] == cls).any()
    assert not (batch.tensors["input_ids"][batch.tensors["selected"] - 1] == sep).any()
    assert (batch.tensors["targets"] == sep).sum() == 8


def logits(objective: Objective, batch: Batch) -> torch.Tensor:
    """Of every token, in the way in which the objective calls its encoder."""
    seen: list[torch.Tensor] = []
    hook = objective.encoder.register_forward_hook(lambda _, __, states: seen.append(states))
    objective(batch)
    hook.remove()
    return objective.encoder.head(seen[0])


@torch.no_grad()
def test_two_objectives_share_an_encoder_and_each_has_its_direction():
    encoder = tiny_encoder().eval()
    causal, masked = make_objective("clm", encoder), make_objective("mlm", encoder)
    for objective, sees_later in ((causal, False), (masked, True), (causal, False)):
        batch = batch_of(objective, range(4))
        changed = batch_of(objective, range(4))
        place = int(batch.tensors["cu_seqlens"][1]) - 2
        changed.tensors["input_ids"][place] += 1
        before = slice(0, place)
        assert torch.equal(logits(objective, batch)[before], logits(objective, changed)[before]) != sees_later


@torch.no_grad()
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_what_is_exported_is_used_in_the_encoders_own_direction(direction, tmp_path):
    encoder: Encoder = tiny_encoder()
    encoder.direct(direction)
    make_objective("clm", encoder).export(tmp_path)
    assert load_encoder(tmp_path).direction == direction


def test_causal_attention_costs_half():
    objective = make_objective("clm")
    rows = rows_of(objective)
    batch = batch_of(objective, range(1), rows=rows)
    encoder, length = objective.encoder, int(rows.lengths[0])
    both, one = encoder.flops(batch), encoder.flops(batch, direction="causal")
    assert both - one == 12 * encoder.hidden_size * encoder.num_layers * (length**2 - length * (length + 1) // 2)
    head = 6 * (length - 1) * (32 * 32 + 32 * encoder.vocabulary.size)
    assert objective.flops(batch) == one + head
