"""The formula against PyTorch's own count of the matrix products that are really done."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2Model

from mlmx.data.batch import Batch
from mlmx.models.flops import attention_flops, num_linear_weights
from tests.objectives.tiny_pairs import batch_of, make_objective, tiny_encoder

COUNTED = ["bert", "roberta", "modernbert"]


def really(objective: torch.nn.Module, batch: Batch) -> int:
    # The plain backend is made of matrix products, which is what the counter knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        sum(objective(batch).terms.values()).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("architecture", COUNTED)
def test_packed_rows_cost_what_the_formula_says(architecture):
    objective = make_objective("mlm", tiny_encoder(architecture=architecture)).train()
    batch = batch_of(objective, range(7))
    assert len(set(batch.tensors["cu_seqlens"].diff().tolist())) > 2
    assert objective.encoder.packed
    assert objective.flops(batch) == really(objective, batch)


def test_what_gpt2_calls_convolutions_are_linear_layers():
    config = GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=16, vocab_size=20)
    # Per layer: queries, keys and values, output, and two of the feed-forward network.
    assert num_linear_weights(GPT2Model(config)) == 2 * (3 * 8 * 8 + 8 * 8 + 2 * 8 * 32)


def test_costs_add_up_over_micro_batches():
    objective = make_objective("mlm")
    whole = objective.flops(batch_of(objective, range(8)))
    assert sum(objective.flops(batch_of(objective, [row])) for row in range(8)) == whole


def test_attention_by_hand():
    lengths = np.array([3, 5])
    assert attention_flops(4, lengths, [None]) == 12 * 4 * (9 + 25)
    # With a window of 2 a token sees its neighbours: 1 + 2 at each end, 3 inside.
    assert attention_flops(4, lengths, [2, None]) == 12 * 4 * (7 + 13 + 9 + 25)
    seen = [sum(abs(i - j) < 4 for i in range(n) for j in range(n)) for n in range(12)]
    assert attention_flops(1, np.arange(12), [4]) == 12 * sum(seen)
