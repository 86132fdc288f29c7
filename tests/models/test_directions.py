"""Which tokens a token sees: on packed and padded rows, in what is exported, and in plain Transformers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from mlmx.errors import UserError
from mlmx.models import attention, probe
from mlmx.models.encoder import Encoder
from mlmx.models.load import load_encoder
from tests.models.test_encoder import LENGTHS, batch_of, config, tokenizer

BERTS = ["bert", "roberta", "electra"]
OTHER_ENCODERS = ["modernbert", "distilbert"]
DECODERS = ["gpt2", "llama", "qwen2"]
ROW = slice(5, 65)  # the second row of the batch, of 60 tokens
CHANGED = 30


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def encoder(family: str, **settings) -> Encoder:
    torch.manual_seed(0)
    loader = AutoModelForCausalLM if family in DECODERS else AutoModelForMaskedLM
    return Encoder(loader.from_config(config(family, **settings)), tokenizer()).eval()


def padded(model: Encoder, implementation: str) -> Encoder:
    model.packed = False
    model.base.set_attn_implementation(implementation)
    return model


def changed_logits(model: Encoder, **called) -> torch.Tensor:
    """(60,) whether the logits of the long row's tokens change with one token in its middle; those of other rows never do."""
    batch, other = batch_of(), batch_of()
    other.tensors["input_ids"][ROW.start + CHANGED] += 1 if other.tensors["input_ids"][ROW.start + CHANGED] < 63 else -1
    difference = (model.head(model(batch, **called)) - model.head(model(other, **called))).abs().amax(dim=1) > 1e-6
    assert not difference[: ROW.start].any()
    assert not difference[ROW.stop :].any()
    return difference[ROW]


@torch.no_grad()
@pytest.mark.parametrize("family", BERTS + OTHER_ENCODERS + DECODERS)
@pytest.mark.parametrize("rows", ["packed", "eager", "sdpa"])
def test_each_call_has_its_direction(family, rows):
    model = encoder(family)
    assert model.packed
    assert model.direction == ("causal" if family in DECODERS else "bidirectional")
    if rows != "packed":
        if family == "modernbert":
            pytest.skip("its two kinds of layers need two masks, and it is packed")
        padded(model, rows)
    # The one way and the other in one process, since nothing of it stays.
    for direction in ("causal", "bidirectional", "causal", None):
        changed = changed_logits(model, direction=direction)
        assert changed[CHANGED:].any()
        assert changed[:CHANGED].any() == ((direction or model.direction) == "bidirectional")


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_packed_equals_padded_either_way(family, direction):
    keys = torch.rand(sum(LENGTHS), generator=torch.Generator().manual_seed(3)) < 0.5
    keys[[0, *torch.tensor(LENGTHS).cumsum(0)[:-1].tolist()]] = True  # the first token of each row
    model = encoder(family)
    packed = [model(batch_of(), direction=direction), model(batch_of(), direction=direction, keys=keys)]
    padded(model, "sdpa")
    torch.testing.assert_close(model(batch_of(), direction=direction), packed[0], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(model(batch_of(), direction=direction, keys=keys), packed[1], rtol=1e-5, atol=2e-6)
    assert not torch.allclose(packed[0], packed[1], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "mistral"])
def test_causal_attention_of_rows_is_that_of_transformers(family):
    # Mistral's windows are shorter than the rows.
    torch.manual_seed(0)
    settings = {"is_decoder": True} if family == "bert" else {}
    plain = AutoModel.from_config(config(family, **settings), attn_implementation="eager").eval()
    batch = batch_of()
    rows = batch.tensors["input_ids"].split(LENGTHS)
    expected = torch.cat([plain(row[None]).last_hidden_state[0] for row in rows])
    torch.manual_seed(0)
    model = Encoder(AutoModel.from_config(config(family)), tokenizer()).eval()
    torch.testing.assert_close(model(batch, direction="causal"), expected, rtol=1e-5, atol=2e-6)


def reference_kernel(query, key, value, starts, starts_of_keys, longest, _, *, scale, window_size, enable_gqa):
    """What torch says of ``varlen_attn``: each row by itself, a token sees so many to its left and right, -1 for all."""
    assert torch.equal(starts, starts_of_keys)
    assert max(starts.diff()) <= longest
    assert not enable_gqa
    left, right = (10**6 if reach < 0 else reach for reach in window_size)
    attended = []
    for start, end in pairwise(starts.tolist()):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (distance <= left) & (-distance <= right)
        attended.append(((q @ k.mT * scale).masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(attended)


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "modernbert", "gpt2"])
def test_the_kernel_is_told_the_direction(family, monkeypatch):
    # The kernel needs a GPU; this stands for it.
    model = encoder(family)
    keys = torch.arange(sum(LENGTHS)) % 3 != 1
    keys[[0, *torch.tensor(LENGTHS).cumsum(0)[:-1].tolist()]] = True
    calls: list[dict] = [{"direction": "causal"}, {"direction": "bidirectional"}, {"direction": "causal", "keys": keys}]
    by_length = [model(batch_of(), **called) for called in calls]
    kernels: list[bool] = []
    monkeypatch.setattr(attention, "uses_kernel", lambda *_: True)
    monkeypatch.setattr(attention, "varlen_attn", lambda *a, **k: (kernels.append(True), reference_kernel(*a, **k))[1])
    for called, expected in zip(calls, by_length, strict=True):
        kernels.clear()
        torch.testing.assert_close(model(batch_of(), **called), expected, rtol=1e-5, atol=2e-6)
        assert bool(kernels) == ("keys" not in called)


@torch.no_grad()
def test_tokens_that_are_no_keys_are_seen_by_themselves_alone():
    model = encoder("bert")
    keys = torch.ones(sum(LENGTHS), dtype=torch.bool)
    keys[ROW.start + CHANGED] = False
    assert changed_logits(model, keys=keys).nonzero().flatten().tolist() == [CHANGED]
    assert changed_logits(model, keys=~keys | keys).all()


@torch.no_grad()
@pytest.mark.parametrize("rows", ["packed", "padded"])
def test_tokens_that_are_no_keys_may_see_themselves(rows):
    model = encoder("bert")
    keys = torch.arange(sum(LENGTHS)) % 4 != 3
    plain = AutoModel.from_config(config("bert"), attn_implementation="eager").eval()
    plain.load_state_dict(model.base.state_dict(), strict=False)
    if rows == "padded":
        padded(model, "eager")
    batch = batch_of()
    expected = []
    for ids, seen in zip(batch.tensors["input_ids"].split(LENGTHS), keys.split(LENGTHS), strict=True):
        allowed = seen | torch.eye(len(ids), dtype=torch.bool)
        mask = torch.zeros(1, 1, len(ids), len(ids)).masked_fill(~allowed, torch.finfo(torch.float32).min)
        expected.append(plain(ids[None], attention_mask=mask).last_hidden_state[0])
    torch.testing.assert_close(model(batch, keys=keys, selves=True), torch.cat(expected), rtol=1e-5, atol=2e-6)
    assert not torch.allclose(model(batch, keys=keys), torch.cat(expected), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("family", "direction"), [*[(f, "bidirectional") for f in DECODERS], *[(f, "causal") for f in BERTS]])
def test_a_turned_model_stays_turned_in_plain_transformers(family, direction, implementation, tmp_path):
    model = encoder(family, vocab_size=72)  # Transformers adds a token to the tokenizer beside a Qwen2.
    model.direct(direction)
    assert model.direction == direction
    model.save(tmp_path)
    plain = AutoModel.from_pretrained(tmp_path, attn_implementation=implementation).eval()
    row = torch.arange(5, 15).repeat(2, 1)
    row[1, 6] = 50
    padding = torch.tensor([[1] * 8 + [0] * 2] * 2)
    for mask in (None, torch.ones_like(row), padding):
        one, other = plain(row, attention_mask=mask).last_hidden_state
        assert torch.allclose(one[:6], other[:6], atol=1e-6) == (direction == "causal")
    again = load_encoder(tmp_path).eval()
    assert again.direction == direction
    assert again.head is not None
    expected = plain(batch_of([10]).tensors["input_ids"][None]).last_hidden_state[0]
    torch.testing.assert_close(again(batch_of([10])), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("family", OTHER_ENCODERS)
def test_what_transformers_cannot_turn_is_told(family):
    with pytest.raises(UserError, match=f"model.attention: Transformers has no causal '{family}'"):
        encoder(family).direct("causal")


def test_what_runs_padded_and_ignores_masks_is_told():
    encoder("mpnet").require("causal")
    encoder("mpnet").require(keys=True)
    deberta = encoder("deberta-v2")
    assert not deberta.packed
    with pytest.raises(UserError, match="'deberta-v2', which runs on padded rows, ignores causal attention"):
        deberta.require("causal")


@pytest.mark.parametrize(("family", "order"), [("bert", False), ("llama", False), ("modernbert", True), ("mpnet", True)])
def test_where_the_order_is_known_without_positions(family, order):
    # By ModernBERT's windows, and by MPNet's distances.
    assert probe.knows_order(encoder(family)) == order


@torch.no_grad()
def test_embeddings_may_be_given():
    for model in (encoder("bert"), padded(encoder("bert"), "sdpa"), encoder("llama")):
        batch, other = batch_of(), batch_of()
        other.tensors["input_ids"].fill_(9)
        given = model.base.get_input_embeddings()(batch.tensors["input_ids"])
        torch.testing.assert_close(model(other, embeddings=given), model(batch), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("tied", [True, False])
def test_decoders_have_heads_and_may_be_given_mask_tokens(family, tied, tmp_path):
    words = tokenizer()
    words.mask_token = words.pad_token = None
    words.eos_token = "[SEP]"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(family, tie_word_embeddings=tied, pad_token_id=None)).eval()
    expected = model(torch.arange(5, 12)[None]).logits[0].detach()
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    loaded = load_encoder(tmp_path, attention="causal").eval()
    assert loaded.vocabulary.mask_id is None
    assert loaded.vocabulary.pad_id == words.eos_token_id == 3
    batch = batch_of([7])
    batch.tensors["input_ids"].copy_(torch.arange(5, 12))
    torch.testing.assert_close(loaded.head(loaded(batch)), expected, rtol=1e-4, atol=1e-4)
    turned = load_encoder(tmp_path, attention="bidirectional", add_mask_token=True)
    assert turned.vocabulary.mask_id is not None
    table = turned.base.get_input_embeddings().weight
    assert len(table) >= turned.vocabulary.size
    assert sum(p is table for p in turned.head.parameters()) == tied
    batch.tensors["input_ids"][3] = turned.vocabulary.mask_id
    turned.head(turned(batch)).logsumexp(-1).sum().backward()
    assert table.grad[turned.vocabulary.mask_id].any()
    turned.drop_head()
    turned.add_head()
    assert sum(p is table for p in turned.head.parameters()) == tied
