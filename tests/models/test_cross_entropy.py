from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM

from mlmx.models import cross_entropy as chunked
from mlmx.models.head import LanguageModelHead

VOCAB_SIZE, WIDTH, PREDICTIONS = 64, 32, 23


def model(*, tied: bool):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert", vocab_size=VOCAB_SIZE, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        tie_word_embeddings=tied,
    )  # fmt: skip
    whole = AutoModelForMaskedLM.from_config(config)
    torch.nn.init.normal_(whole.cls.predictions.decoder.bias)
    return whole


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(PREDICTIONS, WIDTH, generator=generator, requires_grad=True)
    return hidden, torch.randint(VOCAB_SIZE, (PREDICTIONS,), generator=generator)


def results(whole, loss_of) -> tuple[Tensor, Tensor, list[Tensor]]:
    hidden, targets = inputs()
    loss, num_right = loss_of(hidden, targets)
    # The embeddings are used beside the head, as an encoder does.
    (loss + 3 * whole.get_input_embeddings().weight.square().sum()).backward()
    gradients = [hidden.grad, *(p.grad for p in whole.parameters() if p.grad is not None)]
    return loss.detach(), num_right, gradients


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_size", [1, 5, 22, 23])
def test_chunks_equal_the_dense_loss_and_gradient(tied, chunk_size, monkeypatch):
    whole = model(tied=tied)

    def dense(hidden, targets):
        logits = whole.cls(hidden)
        return F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(-1) == targets).sum()

    expected = results(whole, dense)
    whole = model(tied=tied)
    decoder = whole.cls.predictions.decoder
    assert (decoder.weight is whole.get_input_embeddings().weight) == tied
    head = LanguageModelHead(model(tied=tied))
    head.model.cls = whole.cls
    monkeypatch.setattr(chunked, "MAX_LOGITS", chunk_size * VOCAB_SIZE + 7)
    loss, num_right, gradients = results(
        whole, lambda hidden, targets: chunked.cross_entropy(head, hidden, targets, vocab_size=VOCAB_SIZE)
    )
    torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
    assert torch.equal(num_right, expected[1])
    for gradient, other in zip(gradients, expected[2], strict=True):
        assert (gradient - other).norm() <= 1e-5 * other.norm()
    if chunk_size == PREDICTIONS:
        assert torch.equal(loss, expected[0])
        assert all(torch.equal(gradient, other) for gradient, other in zip(gradients, expected[2], strict=True))


def test_only_a_chunk_of_logits_is_held_at_a_time(monkeypatch):
    head = LanguageModelHead(model(tied=True))
    sizes: list[int] = []
    head.register_forward_hook(lambda _module, _inputs, logits: sizes.append(logits.numel()))

    def loss_and_kept() -> tuple[Tensor, set[int]]:
        kept: list[tuple[int, ...]] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
            loss, _ = chunked.cross_entropy(head, *inputs(), vocab_size=VOCAB_SIZE)
        return loss, {shape[0] for shape in kept if shape[1:] == (VOCAB_SIZE,)}

    _, kept = loss_and_kept()
    assert PREDICTIONS in kept
    sizes.clear()
    monkeypatch.setattr(chunked, "MAX_LOGITS", 10 * VOCAB_SIZE)
    loss, kept = loss_and_kept()
    assert not kept & {10, 3, PREDICTIONS}  # nothing of the shape of logits waits for the backward pass
    assert sizes == [10 * VOCAB_SIZE, 10 * VOCAB_SIZE, 3 * VOCAB_SIZE]
    loss.backward()
    assert sorted(sizes[3:]) == [3 * VOCAB_SIZE, 10 * VOCAB_SIZE, 10 * VOCAB_SIZE]  # each once more


def test_small_batches_are_one_chunk():
    assert chunked.predictions_per_chunk(30_522) > 2000
    assert chunked.predictions_per_chunk(250_002) > 250
    assert chunked.predictions_per_chunk(2 * chunked.MAX_LOGITS) == 1


def test_no_predictions_cost_nothing():
    hidden, targets = inputs()
    head = LanguageModelHead(model(tied=True))
    loss, num_right = chunked.cross_entropy(head, hidden[:0], targets[:0], vocab_size=VOCAB_SIZE)
    assert loss.item() == 0
    assert num_right.item() == 0
