"""Starbucks' pretraining: nested masks, cut vectors, and a decoder that has nothing of the encoder but one vector."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_pairs import batch_of, make_objective, tiny_encoder

from mlmx.errors import UserError


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_encoder_s_masks_are_among_the_decoder_s():
    objective = make_objective("starbucks_smae")
    batch = batch_of(objective, range(90))
    selected, decoded = (batch.tensors[name].numpy() for name in ("selected", "decoded"))
    assert set(selected) < set(decoded)
    num_ordinary = int((batch.tensors["input_ids"] >= 0).sum()) - 2 * 90
    assert len(selected) / num_ordinary == pytest.approx(0.2, abs=0.03)
    assert len(decoded) / num_ordinary == pytest.approx(0.4, abs=0.03)
    assert batch.counts == {"mlm": 2 * len(selected), "decoder": 2 * len(decoded)}
    # The decoder reads what it does not predict, and draws for itself what becomes of the rest.
    read, given = batch.tensors["decoder_ids"], batch.tensors["input_ids"]
    others = np.setdiff1d(np.arange(len(read)), decoded)
    assert torch.equal(read[others], given[others])
    mask_id = objective.encoder.vocabulary.mask_id
    assert ((read[selected] == mask_id) != (given[selected] == mask_id)).any()
    assert torch.equal(batch.tensors["decoded_targets"][np.isin(decoded, selected)], batch.tensors["targets"])


def test_mlm_is_that_of_a_head_with_fewer_columns():
    objective = make_objective("starbucks_smae", pairs=((1, 8),)).double()
    batch = batch_of(objective, range(6))
    head = objective.encoder.head.model.cls.predictions
    expected = 0.0
    for layer, width in ((1, 8), (2, 32)):
        hidden = objective.encoder.hidden_states(batch)[layer][batch.tensors["selected"], :width]
        dense = F.linear(hidden, head.transform.dense.weight[:, :width], head.transform.dense.bias)
        logits = head.decoder(head.transform.LayerNorm(F.gelu(dense)))
        expected += F.cross_entropy(logits, batch.tensors["targets"], reduction="sum").item()
    assert objective(batch).terms["mlm"].item() == pytest.approx(expected, rel=1e-12)


def test_the_decoder_has_the_head_s_view_of_the_first_vector_and_its_own_text():
    objective = make_objective("starbucks_smae").double()
    batch = batch_of(objective, range(4))
    seen = []
    objective.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    objective(batch)
    head = objective.encoder.head.model.cls.predictions
    starts = batch.tensors["cu_seqlens"][:-1].long()
    states = objective.encoder.hidden_states(batch)
    small = F.pad(states[1][starts, :16], (0, 16))
    decoder_batch = replace(batch, tensors={**batch.tensors, "input_ids": batch.tensors["decoder_ids"]})
    text = rows_in(objective.encoder.hidden_states(decoder_batch)[0])
    assert len(seen) == 2
    for source, vectors in zip(seen, (small, states[2][starts]), strict=True):
        first = rows_in(head.transform(vectors))
        assert first < rows_in(source)
        assert rows_in(source) - first < text


def rows_in(vectors: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in vectors.detach().numpy().round(9)}


def test_the_vector_is_of_use():
    # Without it, what other rows' decoders read could not change with what the encoder read.
    objective = make_objective("starbucks_smae").double().eval()
    batch = batch_of(objective, range(4))
    before = objective(batch).terms["decoder"]
    unread = [i for i in range(1, int(batch.tensors["cu_seqlens"][1]) - 1) if i not in batch.tensors["selected"].tolist()]
    batch.tensors["input_ids"][unread[0]] = 7
    assert objective(batch).terms["decoder"] != before


def test_settings_that_contradict_are_refused():
    with pytest.raises(UserError, match=r"objective\.decoder_mask_ratio: 0\.1 is below mask_ratio=0\.2"):
        make_objective("starbucks_smae", decoder_mask_ratio=0.1)
    with pytest.raises(UserError, match=r"objective\.pairs\[0\]: \[2, 32\] is no smaller part"):
        make_objective("starbucks_smae", pairs=((2, 32),))
    with pytest.raises(UserError, match="norm after its last layer"):
        make_objective("starbucks_smae", tiny_encoder(architecture="modernbert"))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_what_a_head_s_last_layer_is_given(architecture):
    encoder = tiny_encoder(architecture=architecture)
    encoder.add_head()
    hidden = torch.randn(5, 32)
    vocabulary = encoder.head.model.get_output_embeddings()
    assert torch.equal(vocabulary(encoder.head.transform(hidden)), encoder.head(hidden))
