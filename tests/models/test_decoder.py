from __future__ import annotations

import pytest
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from mlmx.models.decoder import DecoderLayer, SortedRows

LENGTHS = [5, 3, 5, 2]
CU_SEQLENS = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
CONFIG = BertConfig(hidden_size=16, num_attention_heads=4, intermediate_size=24, hidden_act="gelu", layer_norm_eps=1e-5)
CONFIG._attn_implementation = "eager"


def decoder_layer(**settings) -> DecoderLayer:
    torch.manual_seed(0)
    return DecoderLayer(BertConfig(**{**CONFIG.to_diff_dict(), **settings})).double().eval()


def all_visible(rows: SortedRows) -> list[torch.Tensor]:
    return [torch.ones(count, length, length, dtype=torch.bool) for length, count in rows.sizes]


def test_rows_are_sorted_split_and_found_again():
    rows = SortedRows(CU_SEQLENS, 15)
    values = torch.arange(15)
    assert rows.sizes == [(2, 1), (3, 1), (5, 2)]
    assert [part.tolist() for part in rows.split(rows.sort(values))] == [
        [[13, 14]],
        [[5, 6, 7]],
        [[0, 1, 2, 3, 4], [8, 9, 10, 11, 12]],
    ]
    assert torch.equal(rows.sort(values)[rows.places], values)


def test_a_layer_that_sees_all_is_berts():
    layer, reference = decoder_layer(), BertLayer(CONFIG).double().eval()
    attention, inner = reference.attention, reference.intermediate
    twins = {
        layer.query: attention.self.query,
        layer.key: attention.self.key,
        layer.value: attention.self.value,
        layer.output: attention.output.dense,
        layer.attention_norm: attention.output.LayerNorm,
        layer.expand: inner.dense,
        layer.contract: reference.output.dense,
        layer.norm: reference.output.LayerNorm,
    }
    for own, other in twins.items():
        torch.nn.init.normal_(other.bias)
        own.load_state_dict(other.state_dict())
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in reference.parameters())
    rows = SortedRows(CU_SEQLENS, 15)
    x_TD = torch.randn(15, 16, dtype=torch.float64)
    found_TD = layer(rows.sort(x_TD), rows.sort(x_TD), rows, all_visible(rows))[rows.places]
    expected = []
    for row in x_TD.split(LENGTHS):
        output = reference(row[None])
        expected.append((output if isinstance(output, torch.Tensor) else output[0])[0])
    torch.testing.assert_close(found_TD, torch.cat(expected))


def test_what_is_hidden_has_no_part_in_the_result():
    layer = decoder_layer()
    rows = SortedRows(torch.tensor([0, 4], dtype=torch.int32), 4)
    queries = torch.randn(4, 16, dtype=torch.float64)
    source = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    visible = torch.tensor([[[True, False, True, False]] * 4])
    visible[0, 3] = False
    for place in range(4):
        source.grad = None
        layer(queries, source, rows, [visible])[place].square().sum().backward()
        touched = source.grad.abs().sum(1).nonzero()[:, 0].tolist()
        assert touched == ([] if place == 3 else [0, 2])
    # One line for all positions is the same as a line for each.
    for_all = layer(queries, source, rows, [visible[:, :1]])
    torch.testing.assert_close(for_all[:3], layer(queries, source, rows, [visible])[:3])


def test_a_token_that_sees_nothing_gets_nothing_and_a_finite_gradient():
    layer = decoder_layer()
    rows = SortedRows(torch.tensor([0, 3, 6], dtype=torch.int32), 6)
    queries = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)
    visible = torch.ones(2, 1, 3, dtype=torch.bool)
    visible[0] = False
    found = layer(queries, torch.randn(6, 16, dtype=torch.float64), rows, [visible])
    found.square().sum().backward()
    assert found.isfinite().all()
    assert queries.grad.isfinite().all()
    again = layer(queries, torch.randn(6, 16, dtype=torch.float64), rows, [visible])
    torch.testing.assert_close(again[:3], found[:3], rtol=0, atol=0)
    assert not torch.equal(again[3:], found[3:])


def test_the_layer_is_shaped_after_the_encoders_config():
    layer = decoder_layer(hidden_dropout_prob=0.3, hidden_act="relu", initializer_range=0.5)
    assert layer.expand.weight.shape == (24, 16)
    assert layer.norm.eps == layer.attention_norm.eps == 1e-5
    assert layer.dropout.p == 0.3
    assert layer.activation(torch.tensor(-1.0)) == 0
    assert layer.key.weight.std().item() == pytest.approx(0.5, rel=0.2)
