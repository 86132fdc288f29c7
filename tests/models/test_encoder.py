from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from mlmx.data.batch import Batch
from mlmx.errors import UserError
from mlmx.models.dropout import dropout_of
from mlmx.models.encoder import Encoder
from mlmx.models.inference import batches_by_length
from mlmx.models.load import Scratch, load_encoder
from mlmx.models.pooling import encode, pool, resolve_layer
from tests.tiny import numbered_tokenizer

FAMILIES = ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert"]
DECODERS = ["gpt2", "llama", "qwen2", "mistral"]
IGNORANT = ["mpnet", "deberta-v2"]
LENGTHS = [5, 60, 1, 13, 5, 30]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tokenizer():
    return numbered_tokenizer(64)


def config(family: str, **settings):
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 80,
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3,
        # Far from the usual 0.02, so that attention, and its mistakes, weigh something.
        "initializer_range": 0.2,
    }  # fmt: skip
    if family == "modernbert":
        sizes["local_attention"] = 16
    if family in ("llama", "qwen2", "mistral"):
        sizes["num_key_value_heads"] = 2
    if family == "mistral":
        sizes["sliding_window"] = 8
    if family == "electra":
        sizes["embedding_size"] = 16
    if family == "distilbert":
        sizes["hidden_dim"] = sizes.pop("intermediate_size")
    return AutoConfig.for_model(family, **{**sizes, **settings})


def encoder(family: str, **settings) -> Encoder:
    torch.manual_seed(0)
    return Encoder(AutoModelForMaskedLM.from_config(config(family, **settings)), tokenizer()).eval()


def batch_of(lengths: list[int] = LENGTHS) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        tensors={
            "input_ids": torch.randint(5, 64, (sum(lengths),), generator=generator),
            "position_ids": torch.cat([torch.arange(length) for length in lengths]),
            "cu_seqlens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        },
        counts={},
        keys=torch.zeros(len(lengths), dtype=torch.int64),
        max_seqlen=max(lengths),
    )


def one_by_one(family: str, batch: Batch, **settings) -> tuple[Tensor, Tensor]:
    """Vectors and logits by plain Transformers, each row by itself: no packing, no padding, nothing of ours."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config(family, **settings), attn_implementation="eager").eval()
    rows = batch.tensors["input_ids"].split(batch.tensors["cu_seqlens"].diff().tolist())
    vectors = torch.cat([model.base_model(row[None]).last_hidden_state[0] for row in rows])
    logits = torch.cat([model(row[None]).logits[0] for row in rows])
    return vectors, logits


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES + IGNORANT)
def test_equals_plain_transformers(family):
    batch = batch_of()
    vectors, logits = one_by_one(family, batch)
    model = encoder(family)
    assert model.packed == (family in FAMILIES)
    torch.testing.assert_close(model(batch), vectors, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(model.head(model(batch)), logits, rtol=1e-5, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", DECODERS)
def test_decoders_look_back_only_and_only_within_their_row(family):
    # Three have fewer heads of keys than of queries, and Mistral has windows shorter than the rows.
    torch.manual_seed(0)
    plain = AutoModel.from_config(config(family), attn_implementation="eager").eval()
    batch = batch_of()
    rows = batch.tensors["input_ids"].split(batch.tensors["cu_seqlens"].diff().tolist())
    expected = torch.cat([plain(row[None]).last_hidden_state[0] for row in rows])
    model = Encoder(plain, tokenizer()).eval()
    assert model.packed
    torch.testing.assert_close(model(batch), expected, rtol=1e-5, atol=2e-6)
    changed = batch_of()
    changed.tensors["input_ids"][64] = 7  # the last token of the second row
    assert torch.equal(model(changed)[:64], model(batch)[:64])


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_padded(family):
    model = encoder(family)
    batch = batch_of()
    packed = model.hidden_states(batch)
    model.base.set_attn_implementation("sdpa")
    model.packed = False
    padded = model.hidden_states(batch)
    assert len(packed) == len(padded) == model.num_layers + 1
    for a, b in zip(packed, padded, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(packed[-1], model(batch), rtol=1e-5, atol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES + IGNORANT)
def test_one_layer_alone(family):
    model, batch = encoder(family), batch_of()
    ran: list[int] = []
    for number, layer in enumerate(model.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    for layer, states in enumerate(model.hidden_states(batch)):
        ran.clear()
        assert torch.equal(model.states_at(batch, layer), states)
        assert ran == list(range(1, layer + 1))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_gradients_of_packed_equal_those_of_padded(family):
    weights = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(2))
    gradients = []
    for packed in (True, False):
        model = encoder(family)
        if not packed:
            model.base.set_attn_implementation("sdpa")
            model.packed = False
        (model(batch_of()) * weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.base.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()


def test_models_that_ignore_packing_say_so(caplog):
    model = encoder("mpnet")
    assert not model.packed
    assert "see each other" in caplog.text


@torch.no_grad()
def test_rows_never_see_each_other():
    model = encoder("modernbert")
    batch = batch_of()
    before = model(batch)
    changed = dict(batch.tensors)
    changed["input_ids"] = changed["input_ids"].clone()
    changed["input_ids"][5:65] = 7  # the second row
    after = model(Batch(tensors=changed, counts={}, keys=batch.keys, max_seqlen=batch.max_seqlen))
    assert torch.equal(before[:5], after[:5])
    assert torch.equal(before[65:], after[65:])
    assert not torch.allclose(before[5:65], after[5:65])


@torch.no_grad()
def test_positions_are_those_of_the_batch():
    # A TLM row may count its second side from 0 again; RoBERTa's offset is added to whatever the batch says.
    model = encoder("roberta")
    batch = batch_of([6])
    tensors = {**batch.tensors, "position_ids": torch.tensor([0, 1, 2, 0, 1, 2])}
    ours = model(Batch(tensors=tensors, counts={}, keys=batch.keys, max_seqlen=6))
    offset = tensors["position_ids"][None] + 1  # padding_idx is 0 here
    theirs = model.base(batch.tensors["input_ids"][None], position_ids=offset, cu_seqlens=batch.tensors["cu_seqlens"])
    torch.testing.assert_close(ours, theirs.last_hidden_state[0])
    assert model.max_length == 79


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES + IGNORANT)
def test_saved_and_loaded_again(family, tmp_path):
    model, batch = encoder(family), batch_of()
    model.save(tmp_path)
    again = load_encoder(tmp_path).eval()
    assert torch.equal(again(batch), model(batch))
    assert torch.equal(again.head(model(batch)), model.head(model(batch)))
    assert again.packed == model.packed
    plain = AutoModel.from_pretrained(tmp_path).eval()
    row = batch.tensors["input_ids"][:5]
    torch.testing.assert_close(plain(row[None]).last_hidden_state[0], model(batch)[:5], rtol=1e-5, atol=2e-6)
    assert (tmp_path / "config.json").exists()
    assert (tmp_path / "model.safetensors").exists()
    with_head = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(with_head(row[None]).logits[0], model.head(model(batch))[:5], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_come_and_go_and_stay_tied(family, tmp_path):
    model = encoder(family)
    table = model.base.get_input_embeddings().weight
    tied = sum(p is table for p in model.head.parameters())
    assert tied == 1
    with_head = sum(p.numel() for p in model.parameters())
    model.drop_head()
    assert model.head is None
    assert sum(p.numel() for p in model.parameters()) < with_head
    model.save(tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.head is None
    loaded.add_head()
    assert sum(p is loaded.base.get_input_embeddings().weight for p in loaded.head.parameters()) == 1
    assert sum(p.numel() for p in loaded.parameters()) == with_head
    loaded.save(tmp_path / "again")
    assert load_encoder(tmp_path / "again").head is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient(family):
    model = encoder(family).train()
    model.head(model(batch_of())).logsumexp(-1).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_dropout_is_set_everywhere(family):
    dropouts = (
        {"dropout": 0.1, "attention_dropout": 0.1}
        if family == "distilbert"
        else {"attention_dropout": 0.1, "mlp_dropout": 0.1, "embedding_dropout": 0.1}
        if family == "modernbert"
        else {}
    )
    model, batch = encoder(family, **dropouts).train(), batch_of()
    assert not torch.equal(model(batch), model(batch))
    model.set_dropout(0.0)
    assert dropout_of(model) == 0
    assert torch.equal(model(batch), model(batch))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_from_scratch(architecture, tmp_path):
    def built() -> Encoder:
        torch.manual_seed(3)
        settings = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "max_length": 40}
        return Scratch(
            tokenizer(), architecture=architecture, **settings, initializer_range=0.02, attention="bidirectional", tokenizer=None
        ).build()

    model = built().eval()
    assert model.packed
    assert model.max_length == 40
    assert model.vocabulary.size == 64
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), built().parameters(), strict=True))
    model(batch_of([40, 3]))


def test_what_cannot_be_loaded_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(tmp_path)
    with pytest.raises(UserError, match="multiple of num_heads"):
        Scratch(
            None, architecture="bert", num_layers=1, hidden_size=10, num_heads=4, intermediate_size=8, max_length=9,
            initializer_range=0.02, attention="bidirectional", tokenizer=None,
        )  # fmt: skip


def test_pooling_by_hand():
    states = torch.tensor([[1.0, 5.0], [3.0, 1.0], [7.0, 7.0]])
    cu_seqlens = torch.tensor([0, 2, 3], dtype=torch.int32)
    assert pool(states, cu_seqlens, "mean").tolist() == [[2, 3], [7, 7]]
    assert pool(states, cu_seqlens, "cls").tolist() == [[1, 5], [7, 7]]
    assert pool(states, cu_seqlens, "max").tolist() == [[3, 5], [7, 7]]
    assert pool(-states, cu_seqlens, "max").tolist() == [[-1, -1], [-7, -7]]


def test_batches_by_length_lose_no_row():
    lengths = np.array([9, 2, 30, 4, 4, 8], np.int32)
    batches = batches_by_length(lengths, 12)
    assert sorted(np.concatenate(batches).tolist()) == list(range(6))
    assert [lengths[batch].sum() for batch in batches] == [10, 8, 9, 30]


class FakeRows:
    def __init__(self) -> None:
        self.lengths = np.array(LENGTHS, np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, indices):
        from mlmx.data.rows import TokenRows

        batch = batch_of()
        rows = [batch.tensors["input_ids"].numpy()[start:end] for start, end in zip(*self._bounds(), strict=True)]
        taken = [rows[i] for i in indices]
        ids = np.concatenate(taken)
        zeros = np.zeros(len(ids), np.int8)
        cu_seqlens = np.cumsum([0, *map(len, taken)]).astype(np.int32)
        return TokenRows(
            input_ids=ids, cu_seqlens=cu_seqlens, words=zeros.astype(np.int32), segments=zeros, languages=zeros, row_ids=indices
        )

    def _bounds(self):
        ends = np.cumsum(self.lengths)
        return ends - self.lengths, ends


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_encode_keeps_the_order_of_rows(layer):
    model, batch = encoder("bert"), batch_of()
    vectors = encode(model, FakeRows(), layer=layer, pooling="mean", batch_tokens=20)
    with torch.no_grad():
        expected = pool(model.hidden_states(batch)[layer], batch.tensors["cu_seqlens"], "mean")
    np.testing.assert_allclose(vectors, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("layer", "expected"), [("last", 6), (0, 0), (6, 6), (-1, 6), (-7, 0)])
def test_layers(layer, expected):
    assert resolve_layer(layer, 6, where="task.bitext.layer") == expected


@pytest.mark.parametrize("layer", [7, -8])
def test_a_layer_the_encoder_has_not(layer):
    with pytest.raises(
        UserError, match=r"task.bitext.layer: -?\d is no layer of this encoder; allowed are 0 \(the embeddings\) to 6"
    ):
        resolve_layer(layer, 6, where="task.bitext.layer")
