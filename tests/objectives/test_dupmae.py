from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_pairs import batch_of, make_objective, rows_of
from transformers import AutoModelForMaskedLM

from mlmx.data.batch import BatchContext
from mlmx.models import bag_of_words, cross_entropy
from mlmx.models.bag_of_words import bag_of_words_loss, largest_logits


def bags_of(batch) -> list[list[int]]:
    return [bag.tolist() for bag in batch.tensors["bag"].split(batch.tensors["num_in_bag"].tolist())]


@pytest.mark.parametrize("parity", ["paper", "released_code"])
def test_the_bag_of_words_by_hand(parity):
    objective = make_objective("dupmae", parity=parity).double().eval()
    rows = rows_of(objective).take(np.arange(6))
    batch = batch_of(objective, range(6))
    hidden = objective.encoder(batch)
    expected, masses = 0.0, []
    for row in range(6):
        start, end = rows.cu_seqlens[row : row + 2]
        ordinary = [place for place in range(start, end) if not rows.special[place]]
        logits = torch.stack([objective.encoder.head(hidden[place : place + 1])[0] for place in ordinary])
        logarithms = torch.log_softmax(logits.max(dim=0).values, dim=0)
        words = {int(rows.input_ids[place]) for place in ordinary}
        weight = 1.0 if parity == "paper" else 1 / len(ordinary)
        expected -= weight * sum(logarithms[word].item() for word in words)
        masses.append(weight * len(words))
        assert bags_of(batch)[row] == sorted(words)
    assert batch.counts["bow"] == 6
    assert objective(batch).terms["bow"].item() == pytest.approx(expected, rel=1e-10)
    # Rows are pairs in which an ending may stand more than once.
    assert min(masses) < 1 if parity == "released_code" else max(masses) > 1


def test_a_bag_has_no_order():
    objective = make_objective("dupmae")
    rows = rows_of(objective).take(np.arange(4))
    order = np.arange(len(rows.input_ids))
    for start, end in zip(rows.cu_seqlens[:-1], rows.cu_seqlens[1:], strict=True):
        ordinary = np.flatnonzero(~rows.special[start:end]) + start
        order[ordinary] = ordinary[::-1]
    context = BatchContext(keys=np.arange(4))
    turned = replace(rows, input_ids=rows.input_ids[order], words=rows.words[order])
    batches = [objective.collator()(some, context) for some in (rows, turned)]
    assert bags_of(batches[0]) == bags_of(batches[1])
    assert not torch.equal(batches[0].tensors["decoded_targets"], batches[1].tensors["decoded_targets"])


def test_the_largest_logit_wins_and_a_row_without_tokens_has_none():
    logits = torch.tensor([[1.0, 5.0], [3.0, 2.0], [0.0, -1.0]])
    found = largest_logits(torch.nn.Identity(), logits.bfloat16(), [2, 0, 1])
    assert found.tolist() == [[3.0, 5.0], [0.0, 0.0], [0.0, -1.0]]
    assert found.dtype == torch.float32


def test_rows_that_go_through_the_head_some_at_a_time_cost_the_same(monkeypatch):
    torch.manual_seed(0)
    sizes, bag_sizes = [3, 5, 0, 2, 4], [2, 3, 0, 2, 1]
    head = torch.nn.Linear(6, 11).double()
    hidden = torch.randn(14, 6, dtype=torch.float64, requires_grad=True)
    bag, weights = torch.randint(11, (8,)), torch.rand(8, dtype=torch.float64)
    losses, gradients = [], []
    calls = []
    forward = bag_of_words.largest_logits
    monkeypatch.setattr(bag_of_words, "largest_logits", lambda *given: calls.append(given[2]) or forward(*given))
    for most in (10**6, 7 * 11, 1):
        monkeypatch.setattr(cross_entropy, "MAX_LOGITS", most)
        losses.append(bag_of_words_loss(head, hidden, sizes, bag, weights, bag_sizes, vocab_size=11))
        gradients.append(torch.autograd.grad(losses[-1], [hidden, head.weight]))
    # Forward, and where there are chunks once more in the backward pass.
    first_of_chunks = [[3], [5, 0, 2], [4]]
    assert calls[0] == sizes
    assert calls[1:4] == first_of_chunks
    assert sorted(calls[4:7]) == sorted(first_of_chunks)
    assert sum(map(sum, calls[7:])) == 2 * 14
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0])
        torch.testing.assert_close(gradient, gradients[0])


def test_weights_and_what_is_exported(tmp_path):
    objective = make_objective("dupmae", bow_weight=0.3, decoder_weight=2.0)
    assert objective.weights == {"mlm": 1.0, "decoder": 2.0, "bow": 0.3}
    objective.export(tmp_path)
    model, told = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    # With the head, since lexical scores need it.
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(model.cls(hidden[None])[0], objective.encoder.head(hidden))


def test_flops_count_the_head_once_more_for_every_token():
    objective, plain = make_objective("dupmae"), make_objective("retromae")
    batch = batch_of(objective, range(4))
    head = 6 * (32 * 32 + 32 * objective.encoder.vocabulary.size)
    assert objective.flops(batch) == plain.flops(batch) + head * batch.counts["decoder"]


def test_queries_are_normed():
    objective = make_objective("dupmae")
    queries = objective.decoder.queries(torch.randn(5, 32), torch.randn(5, 32))
    torch.testing.assert_close(queries.mean(-1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(queries.var(-1, unbiased=False), torch.ones(5), atol=1e-4, rtol=0)
