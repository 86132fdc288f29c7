from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_pairs import batch_of, make_objective, rows_of, tiny_encoder
from transformers import AutoModelForMaskedLM

from mlmx.errors import UserError
from mlmx.models import drawn_embedding
from mlmx.models.drawn_embedding import drawn_cross_entropy, drawn_embeddings
from mlmx.models.encoder import Encoder
from mlmx.objectives import lexinvariant
from tests.models.test_encoder import config
from tests.tiny import numbered_tokenizer


def test_draws_are_normal_and_functions_of_row_and_id():
    keys, ids = torch.arange(40), torch.arange(50)
    tables = drawn_embeddings(keys[:, None], ids, 31, 0.5, torch.float64)
    assert tables.shape == (40, 50, 31)
    assert abs(tables.mean()) < 4 * 0.5 / tables.numel() ** 0.5
    assert tables.std().item() == pytest.approx(0.5, rel=0.01)
    # The part within one, two and three standard deviations.
    for deviations, part in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert ((tables / 0.5).abs() < deviations).double().mean().item() == pytest.approx(part, abs=0.005)
    correlation = torch.corrcoef(tables.flatten(0, 1).T) - torch.eye(31)
    assert correlation.abs().max() < 5 / 2000**0.5
    one = drawn_embeddings(torch.tensor(7), torch.tensor(9), 31, 0.5, torch.float64)
    torch.testing.assert_close(one, tables[7, 9], rtol=1e-14, atol=0)


@pytest.fixture
def relabelled(monkeypatch):
    """Exchange which id each drawn vector belongs to."""

    def exchange(order: torch.Tensor) -> None:
        for module in (lexinvariant, drawn_embedding):
            monkeypatch.setattr(module, "drawn_embeddings", lambda keys, ids, *others: drawn_embeddings(keys, order[ids], *others))

    return exchange


def test_a_cipher_costs_what_the_text_costs(relabelled):
    objective = make_objective("lexinvariant").eval()
    batch = batch_of(objective, range(8))
    expected = objective(batch).terms["clm"].item()
    size = objective.encoder.vocabulary.size
    cipher = torch.randperm(size, generator=torch.Generator().manual_seed(1))
    written = {name: cipher[batch.tensors[name]] for name in ("input_ids", "targets")}
    enciphered = replace(batch, tensors={**batch.tensors, **written})
    # Under the same draws another text, since its tokens have other vectors; with these exchanged too, the same one.
    assert objective(enciphered).terms["clm"].item() != pytest.approx(expected, rel=1e-5)
    relabelled(cipher.argsort())
    assert objective(enciphered).terms["clm"].item() == pytest.approx(expected, rel=1e-6)


def test_over_many_draws_a_cipher_costs_the_same():
    objective = make_objective("lexinvariant").eval()
    batch = batch_of(objective, [0])
    cipher = torch.randperm(objective.encoder.vocabulary.size, generator=torch.Generator().manual_seed(1))
    written = {name: cipher[batch.tensors[name]] for name in ("input_ids", "targets")}
    enciphered = replace(batch, tensors={**batch.tensors, **written})
    with torch.no_grad():
        plain, other = (
            np.array([objective(replace(one, keys=torch.tensor([key]))).terms["clm"].item() for key in range(200)])
            for one in (batch, enciphered)
        )
    assert plain.std() > 0
    assert abs(plain.mean() - other.mean()) < 3 * (plain.var() / 200 + other.var() / 200) ** 0.5


def test_the_loss_by_a_table_for_each_row():
    objective = make_objective("lexinvariant").eval()
    batch = batch_of(objective, range(5))
    encoder, expected = objective.encoder, 0.0
    lengths = batch.tensors["cu_seqlens"].diff().tolist()
    for row, (ids, key) in enumerate(zip(batch.tensors["input_ids"].split(lengths), batch.keys, strict=True)):
        table = drawn_embeddings(key, torch.arange(encoder.vocabulary.size), 32, 32**-0.5, torch.float32)
        alone = batch_of(objective, [row])
        hidden = encoder(alone, direction="causal", embeddings=table[ids])
        expected += F.cross_entropy(hidden[:-1] @ table.T, ids[1:], reduction="sum").item()
    assert objective(batch).terms["clm"].item() == pytest.approx(expected, rel=1e-5)


def test_each_row_has_its_own_language_and_another_one_in_each_epoch():
    objective = make_objective("lexinvariant").eval()
    batch = batch_of(objective, [3, 3])
    assert torch.equal(batch.keys[0], batch.keys[1])
    first, second = batch_of(objective, [3]), batch_of(objective, [3], epoch=1)
    assert torch.equal(first.tensors["input_ids"], second.tensors["input_ids"])
    assert objective(first).terms["clm"] != objective(second).terms["clm"]
    apart = objective(replace(batch, keys=torch.cat([first.keys, second.keys]))).terms["clm"].item()
    assert apart == pytest.approx((objective(first).terms["clm"] + objective(second).terms["clm"]).item(), rel=1e-5)


def test_nothing_of_the_vocabularys_size_is_trained():
    objective = make_objective("lexinvariant")
    size = objective.encoder.vocabulary.size
    assert not [name for name, p in objective.named_parameters() if p.requires_grad and size in p.shape]
    assert objective.encoder.head is None
    before = objective.encoder.base.get_input_embeddings().weight.clone()
    objective(batch_of(objective, range(4))).terms["clm"].backward()
    assert torch.equal(objective.encoder.base.get_input_embeddings().weight, before)
    assert before.std().item() == pytest.approx(32**-0.5, rel=0.05)


@pytest.mark.parametrize("std", [1.0, 0.1])
def test_what_cannot_be_known_costs_the_logarithm_of_the_vocabulary(std):
    # Vectors orthogonal to all that is drawn say that every token is as likely as any other.
    keys = torch.arange(3)
    sizes = torch.tensor([2, 4, 1])
    loss, _ = drawn_cross_entropy(torch.zeros(7, 16), torch.arange(7), sizes, keys, vocab_size=50, std=std)
    assert loss.item() == pytest.approx(7 * math.log(50), rel=1e-6)


def test_some_rows_at_a_time_are_all_rows(monkeypatch):
    keys, sizes = torch.arange(5), torch.tensor([3, 1, 0, 7, 2])
    hidden = torch.randn(13, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    targets = torch.randint(40, (13,), generator=torch.Generator().manual_seed(1))

    def loss_and_gradient() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden.grad = None
        loss, num_right = drawn_cross_entropy(hidden, targets, sizes, keys, vocab_size=40, std=1.0)
        loss.backward()
        return loss.detach(), num_right, hidden.grad

    whole = loss_and_gradient()
    monkeypatch.setattr(drawn_embedding, "MAX_NUMBERS", 2 * 40 * 16)
    for one, other in zip(whole, loss_and_gradient(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_embeddings_of_another_width_are_refused():
    torch.manual_seed(0)
    electra = Encoder(AutoModelForMaskedLM.from_config(config("electra")), numbered_tokenizer(64))
    with pytest.raises(UserError, match="embeddings are 16 wide and its layers 32"):
        make_objective("lexinvariant", electra)


def test_flops_of_a_head_without_weights():
    objective, encoder = make_objective("lexinvariant"), tiny_encoder()
    batch = batch_of(objective, range(2), rows=rows_of(objective))
    head = objective.flops(batch) - encoder.flops(batch, direction="causal")
    assert head == 4 * 32 * encoder.vocabulary.size * batch.counts["clm"]
