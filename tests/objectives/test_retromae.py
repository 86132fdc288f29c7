from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_pairs import MONOLINGUAL, PARALLEL, batch_of, make_objective, rows_of, tiny_encoder
from transformers import AutoModelForMaskedLM

from mlmx.data.batch import Batch
from mlmx.errors import UserError
from mlmx.keyed import row_keys
from mlmx.models.enhanced_decoder import contexts

PARITIES = ["paper", "released_code"]


def keys_of(num_rows: int) -> torch.Tensor:
    return torch.from_numpy(row_keys(seed=0, epoch=0, row_ids=np.arange(num_rows)))


def words_of(sizes: list[int]) -> torch.Tensor:
    """The words of a row with a special token at each end."""
    return torch.tensor([-1, *np.arange(len(sizes)).repeat(sizes).tolist(), -1])


def embeddings_of(objective, batch: Batch) -> torch.Tensor:
    """What the decoder reads: the embeddings of the tokens as they were."""
    ids = batch.tensors["input_ids"].index_copy(0, batch.tensors["selected"], batch.tensors["targets"])
    return objective.encoder.base.embeddings(ids[None], position_ids=batch.tensors["position_ids"][None])[0]


@pytest.mark.parametrize("parity", PARITIES)
def test_no_position_of_the_decoder_is_told_its_own_token(parity):
    objective = make_objective("retromae", parity=parity, decoder_mask_ratio=0.3).double()
    batch = batch_of(objective, range(3))
    hidden = objective.encoder(batch).detach()
    embeddings = embeddings_of(objective, batch).detach().requires_grad_()
    rebuilt = objective.decoder(hidden, embeddings, batch)
    row_of = torch.arange(3).repeat_interleave(batch.tensors["cu_seqlens"].diff())
    projection = torch.randn(rebuilt.shape[1], dtype=torch.float64)
    num_seen = 0
    for place in batch.tensors["decoded"].tolist():
        (gradient,) = torch.autograd.grad(rebuilt[place] @ projection, embeddings, retain_graph=True)
        seen = gradient.abs().sum(1) > 0
        assert not seen[place]
        assert not seen[row_of != row_of[place]].any()
        num_seen += int(seen.sum())
    assert num_seen > len(batch.tensors["decoded"])


@pytest.mark.parametrize("parity", PARITIES)
@pytest.mark.parametrize("mask_ratio", [0.0, 0.5, 1.0])
def test_each_position_sees_the_vector_and_the_special_tokens_and_not_itself(parity, mask_ratio):
    words_NL = words_of([1, 2, 1, 4, 1]).expand(20, -1)
    visible = contexts(keys_of(20), words_NL, mask_ratio, parity)
    length = words_NL.shape[1]
    assert visible.shape == (20, length, length)
    assert visible[:, :, 0].all()
    assert visible[:, : length - 1, -1].all()
    assert not visible[:, range(1, length), range(1, length)].any()
    others = visible[:, 1:-1, 1:-1][:, ~torch.eye(length - 2, dtype=torch.bool)]
    if mask_ratio in (0.0, 1.0):
        assert others.all() if mask_ratio == 0 else not others.any()


def test_contexts_of_the_paper_are_drawn_for_each_position_by_itself():
    words_NL = words_of([1, 2, 1, 4, 1, 3] * 2).expand(200, -1)
    visible = contexts(keys_of(200), words_NL, 0.7, "paper")[:, 1:-1, 1:-1]
    apart = ~torch.eye(visible.shape[1], dtype=torch.bool)
    share = visible[:, apart].double()
    assert share.mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / share.numel()))
    # Neither do two positions see the same, nor do pieces of a word go together.
    assert len({tuple(line) for line in visible[0].int().tolist()}) == visible.shape[1]
    pieces = visible[:, 0, [1, 2]]
    assert (pieces[:, 0] != pieces[:, 1]).any()


def test_contexts_of_the_released_code_hide_whole_words_until_the_part_is_reached():
    sizes = [1, 2, 1, 4, 1, 3]
    words = words_of(sizes)
    visible = contexts(keys_of(100), words.expand(100, -1), 0.5, "released_code")
    num_hidden = []
    for line, own in ((line, own) for row in visible for own, line in enumerate(row)):
        # The position's own token is hidden whatever becomes of its word.
        hidden = {int(words[place]) for place in range(1, len(words) - 1) if not line[place] and place != own}
        for place in range(1, len(words) - 1):
            if place != own and int(words[place]) != int(words[own]):
                assert bool(line[place]) == (int(words[place]) not in hidden)
        if words[own] < 0:
            total = sum(sizes[word] for word in hidden)
            num_hidden.append(total)
            # One word more, or one less, would be on the other side of 6 of the 12 tokens.
            assert 6 - max(sizes) < total < 6 + max(sizes)
    assert np.mean(num_hidden) == pytest.approx(6, abs=0.4)
    assert all(len({tuple(line) for line in row[:, 1:-1].int().tolist()}) > 2 for row in visible)


def test_the_released_code_has_no_more_than_256_contexts():
    words = words_of([1] * 600)[None]
    visible = contexts(keys_of(1), words, 0.5, "released_code")[0]
    # Two positions with one context differ in their own tokens only.
    lines = visible[1:-1, 1:-1].float()
    num_alike = (torch.cdist(lines, lines, p=1) <= 2).sum(1)
    assert (1 / num_alike).sum().item() == pytest.approx(256 * (1 - (1 - 1 / 256) ** 600), abs=12)


@pytest.mark.parametrize("parity", PARITIES)
def test_what_a_position_sees_does_not_depend_on_what_the_encoder_does(parity):
    objective = make_objective("retromae", parity=parity)
    selected, hidden = [], []
    rows = rows_of(objective, 200)
    batch = batch_of(objective, range(200), rows=rows)
    picked = torch.zeros(batch.num_tokens, dtype=torch.bool)
    picked[batch.tensors["selected"]] = True
    for row, start in enumerate(batch.tensors["cu_seqlens"][:-1].tolist()):
        end = int(batch.tensors["cu_seqlens"][row + 1])
        words = batch.tensors["words"][start:end][None]
        visible = contexts(batch.keys[row : row + 1], words, 0.5, parity)[0]
        # The last place is a special token's, whose context hides no token of its own.
        selected += picked[start + 1 : end - 1].tolist()
        hidden += (~visible[-1, 1:-1]).tolist()
    assert abs(np.corrcoef(selected, hidden)[0, 1]) < 4 / math.sqrt(len(rows) * 4)
    assert np.mean(hidden) == pytest.approx(0.5, abs=0.03)


def test_every_ordinary_token_is_rebuilt_and_none_else():
    for view, corpus in (("segment", MONOLINGUAL), ("pair", PARALLEL), ("corpus", PARALLEL)):
        objective = make_objective("retromae", corpus=corpus, view=view)
        rows = rows_of(objective).take(np.arange(12))
        batch = batch_of(objective, range(12))
        num_special = 2 if view == "segment" else 3
        assert batch.counts["decoder"] == len(rows.input_ids) - 12 * num_special
        decoded = batch.tensors["decoded"].numpy()
        assert not rows.special[decoded].any()
        assert not rows.special[batch.tensors["selected"].numpy()].any()
        np.testing.assert_array_equal(batch.tensors["decoded_targets"].numpy(), rows.input_ids[decoded])


def test_the_decoder_by_hand():
    objective = make_objective("retromae").double().eval()
    batch = batch_of(objective, range(5))
    encoder, layer = objective.encoder, objective.decoder.layer
    hidden, embeddings = encoder(batch), embeddings_of(objective, batch)
    table = encoder.base.embeddings.position_embeddings.weight
    decoded, total = set(batch.tensors["decoded"].tolist()), 0.0
    edges = batch.tensors["cu_seqlens"].tolist()
    ids = dict(zip(batch.tensors["decoded"].tolist(), batch.tensors["decoded_targets"].tolist(), strict=True))
    for row, (start, end) in enumerate(pairwise(edges)):
        vector = hidden[start]
        known = torch.cat([vector[None], embeddings[start + 1 : end]])
        visible = contexts(batch.keys[row : row + 1], batch.tensors["words"][start:end][None], 0.5, "released_code")[0]
        for place in range(end - start):
            if start + place not in decoded:
                continue
            query = vector + table[place]
            seen = known[visible[place]]
            # Four heads of width 8.
            q, k, v = (x.unflatten(-1, (4, 8)) for x in (layer.query(query), layer.key(seen), layer.value(seen)))
            weights = torch.softmax(torch.einsum("he,lhe->hl", q, k) / math.sqrt(8), dim=-1)
            x = layer.attention_norm(query + layer.output(torch.einsum("hl,lhe->he", weights, v).flatten()))
            x = layer.norm(x + layer.contract(F.gelu(layer.expand(x))))
            total -= torch.log_softmax(encoder.head(x[None])[0], 0)[ids[start + place]].item()
    assert objective(batch).terms["decoder"].item() == pytest.approx(total, rel=1e-10)


def test_a_decoder_that_has_learned_needs_the_vector():
    objective = make_objective("retromae", tiny_encoder(hidden_size=64)).train()
    batch = batch_of(objective, range(4))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        objective(batch).terms["decoder"].backward()
        optimizer.step()
    with torch.no_grad():
        hidden = objective.encoder(batch)
        with_vector, without = (objective.rebuild(x, batch).terms["decoder"].item() for x in (hidden, torch.zeros_like(hidden)))
    assert without > 1.5 * with_vector


@pytest.mark.parametrize("architecture", ["roberta", "modernbert"])
def test_other_families(architecture):
    objective = make_objective("retromae", tiny_encoder(architecture=architecture))
    decoder, batch = objective.decoder, batch_of(objective, range(6))
    if architecture == "roberta":
        # Its first position has the number after that of the padding.
        table = objective.encoder.base.embeddings.position_embeddings
        assert decoder.positions is table
        hidden = torch.zeros(batch.num_tokens, 32)
        table.zero_grad()
        (decoder(hidden, hidden, batch) @ torch.randn(32)).sum().backward()
        used = table.weight.grad.abs().sum(1).nonzero()[:, 0]
        first = objective.encoder.vocabulary.pad_id + 1
        assert used.tolist() == list(range(first, first + batch.max_seqlen))
    else:
        assert decoder.positions.num_embeddings == objective.encoder.max_length
        keys = torch.zeros(batch.num_tokens, 32)
        decoder.layer.query.weight.data.zero_()
        seen = {}
        hook = decoder.layer.key.register_forward_hook(lambda _, inputs, __: seen.update(keys=inputs[0]))
        decoder(keys, keys, batch)
        hook.remove()
        assert seen["keys"].abs().sum(1).count_nonzero() == batch.num_tokens - batch.num_rows
    terms = objective(batch).terms
    assert all(value.isfinite() for value in terms.values())


def test_flops_are_those_of_encoder_head_and_decoder():
    objective = make_objective("retromae")
    batch = batch_of(objective, range(4))
    lengths = batch.tensors["cu_seqlens"].diff().long()
    width, inner, tokens = 32, 64, batch.num_tokens
    decoder = 6 * tokens * (4 * width * width + 2 * width * inner) + 12 * width * int((lengths**2).sum())
    head = 6 * (width * width + width * objective.encoder.vocabulary.size) * sum(batch.counts.values())
    assert objective.flops(batch) == objective.encoder.flops(batch) + decoder + head


def test_nothing_of_the_decoder_is_exported(tmp_path):
    objective = make_objective("retromae")
    objective.export(tmp_path)
    _, told = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]


def test_a_tokenizer_without_a_first_token_is_refused():
    encoder = tiny_encoder()
    encoder.vocabulary = type(encoder.vocabulary)(
        **{name: getattr(encoder.vocabulary, name) for name in ("size", "mask_id", "pad_id", "special_ids", "pair")},
        single=type(encoder.vocabulary.single)(prefix=(), suffix=(3,)),
    )
    with pytest.raises(UserError, match="puts no special token before a text"):
        make_objective("retromae", encoder)
