from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_pairs import batch_of, make_objective, tiny_encoder
from transformers import AutoModel, AutoModelForMaskedLM

from mlmx.errors import UserError
from mlmx.models.decoder import DecoderLayer

MASKED = {"mask_ratio": 0.5, "selection": "bernoulli", "corruption": {"mask": 0.8, "random": 0.1, "keep": 0.1}}


def seen_by_layers(objective, batch, monkeypatch) -> list[torch.Tensor]:
    """(T,) which keys each layer of the decoder sees, in the order of the batch."""
    seen = []
    forward = DecoderLayer.forward

    def recorded(layer, queries, source, rows, visible):
        assert all(line.shape[1] == 1 for line in visible)
        seen.append(torch.cat([line.flatten() for line in visible])[rows.places])
        return forward(layer, queries, source, rows, visible)

    monkeypatch.setattr(DecoderLayer, "forward", recorded)
    objective(batch)
    return seen


def test_layers_see_more_and_more_of_the_mask_tokens_and_all_of_the_others(monkeypatch):
    objective = make_objective("bpdec", **MASKED, visible_mask_ratios=[0.0, 0.4, 1.0])
    batch = batch_of(objective, range(48))
    first, second, third = seen_by_layers(objective, batch, monkeypatch)
    masked = batch.tensors["input_ids"] == objective.encoder.vocabulary.mask_id
    assert torch.equal(first, ~masked)
    assert third.all()
    assert second[~masked].all()
    number = int(masked.sum())
    assert second[masked].sum().item() == pytest.approx(0.4 * number, abs=4 * (0.24 * number) ** 0.5)


def test_what_is_blocked_has_no_part_in_the_other_tokens():
    objective = make_objective("bpdec", **MASKED, visible_mask_ratios=[0.0, 0.0]).double()
    batch = batch_of(objective, range(3))
    encoded = objective.encoder(batch).detach().requires_grad_()
    decoded = objective.decode(encoded, batch)
    masked = batch.tensors["input_ids"] == objective.encoder.vocabulary.mask_id
    projection = torch.randn(32, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(decoded[~masked] @ projection @ torch.randn(int((~masked).sum())).double(), encoded)
    assert (gradient[masked] == 0).all()
    assert (gradient[~masked].abs().sum(1) > 0).all()


def test_a_row_without_anything_to_see_is_finite():
    objective = make_objective("bpdec", **MASKED, visible_mask_ratios=[0.0])
    batch = batch_of(objective, range(2))
    batch.tensors["input_ids"][:] = objective.encoder.vocabulary.mask_id
    batch.tensors["unmask_draws"][:] = 0.5
    tensors = {**batch.tensors, "selected": torch.arange(batch.num_tokens), "unmask_draws": torch.full((batch.num_tokens,), 0.5)}
    everything = type(batch)(tensors=tensors, counts={}, keys=batch.keys, max_seqlen=batch.max_seqlen)
    decoded = objective.decode(objective.encoder(everything), everything)
    decoded.square().sum().backward()
    assert decoded.isfinite().all()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


@pytest.mark.parametrize("mix", ["token", "scalar"])
def test_without_the_decoder_it_is_masked_language_modelling(mix):
    plain = make_objective("mlm", **MASKED)
    objective = make_objective("bpdec", **MASKED, mix=mix, decoder_ratio=0.0)
    batch = batch_of(objective, range(8))
    other = batch_of(plain, range(8))
    assert all(torch.equal(batch.tensors[key], other.tensors[key]) for key in other.tensors)
    assert torch.equal(objective(batch).terms["mlm"], plain(other).terms["mlm"])


@pytest.mark.parametrize("mix", ["token", "scalar"])
@pytest.mark.parametrize("ratio", [0.25, 1.0])
@torch.no_grad()
def test_what_the_head_gets(mix, ratio):
    objective = make_objective("bpdec", **MASKED, mix=mix, decoder_ratio=ratio).eval()
    batch = batch_of(objective, range(48))
    selected = batch.tensors["selected"]
    encoded = objective.encoder(batch)
    decoded = objective.decode(encoded, batch)[selected]
    given = []
    objective.encoder.head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    objective(batch)
    (mixed,) = given
    # The weight of the decoder is the same in all numbers of a vector.
    weights = (mixed - encoded[selected]) / (decoded - encoded[selected])
    weight = weights.median(dim=1).values
    assert mixed.sub(torch.lerp(encoded[selected], decoded, weight[:, None])).abs().max() < 1e-5
    row = torch.searchsorted(batch.tensors["cu_seqlens"].long(), selected, right=True)
    if mix == "token":
        assert torch.isclose(weight[:, None], torch.tensor([0.0, 1.0]), atol=1e-4).any(1).all()
        assert weight.mean().item() == pytest.approx(ratio, abs=4 * (ratio * (1 - ratio) / len(weight)) ** 0.5 + 1e-4)
    else:
        of_rows = [weight[row == number] for number in row.unique()]
        assert max(float(some.max() - some.min()) for some in of_rows) < 1e-3
        drawn = np.array([float(some.mean()) for some in of_rows])
        # Uniform around the ratio, as far as [0, 1] allows.
        reach = min(ratio, 1 - ratio)
        assert ratio - reach - 1e-4 <= drawn.min() <= drawn.max() <= ratio + reach + 1e-4
        assert drawn.mean() == pytest.approx(ratio, abs=4 * reach / (3 * len(drawn)) ** 0.5 + 1e-4)


def test_the_encoder_is_the_same_with_and_without(tmp_path):
    objective = make_objective("bpdec")
    plain = tiny_encoder()
    batch = batch_of(objective, range(4))
    assert torch.equal(objective.encoder(batch), plain(batch))
    objective.export(tmp_path)
    for loader in (AutoModel, AutoModelForMaskedLM):
        _, told = loader.from_pretrained(tmp_path, output_loading_info=True)
        # BERT's pooler is no part of a masked language model, and its head none of the bare model.
        assert not [key for key in told["missing_keys"] if "pooler" not in key]
        assert not [key for key in told["unexpected_keys"] if not key.startswith("cls.")]


def test_flops_are_those_of_encoder_decoder_and_head():
    objective, plain = make_objective("bpdec"), make_objective("mlm")
    batch = batch_of(objective, range(4))
    pairs = int((batch.tensors["cu_seqlens"].diff().long() ** 2).sum())
    layer = 6 * batch.num_tokens * (4 * 32 * 32 + 2 * 32 * 64) + 12 * 32 * pairs
    assert objective.flops(batch) == plain.flops(batch) + 2 * layer


def test_a_layer_that_sees_less_than_the_one_below_is_refused():
    with pytest.raises(UserError, match=r"visible_mask_ratios: \[1.0, 0.5\]: no layer may see fewer"):
        make_objective("bpdec", visible_mask_ratios=[1.0, 0.5])
