from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_pairs import PARALLEL, VOCABULARY_SIZE, batch_of, make_objective, node_of, rows_of, tiny_encoder
from transformers import AutoModelForMaskedLM, ModernBertConfig

from mlmx.build import problems_of
from mlmx.data.batch import BatchContext
from mlmx.data.ngram_lexicon import NgramLexicon
from mlmx.errors import UserError
from mlmx.keyed import row_keys

NGRAMS = {"_target_": "mlmx.data.ngram_lexicon.NgramLexicon", "_version_": 1, "num_kept": [40, 20]}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def objective_with(**settings):
    return make_objective("ernie_gram", **{"ngrams": NGRAMS, **settings})


def spelled(objective, identity: int) -> list[int]:
    """The tokens of a token or an n-gram."""
    if identity < objective.num_words:
        return [identity]
    table = objective.collator().table
    for length, identities in table.identities.items():
        if len(found := np.flatnonzero(identities == identity)):
            return [int(table.codes[length][found[0]]) // objective.num_words**i % objective.num_words for i in range(length)][::-1]
    raise AssertionError(identity)


def test_a_masked_unit_is_one_token_and_the_text_can_be_put_together_again():
    objective = objective_with(mask_ratio=0.4)
    rows, batch = rows_of(objective).take(np.arange(48)), batch_of(objective, range(48))
    tensors = {name: tensor.numpy() for name, tensor in batch.tensors.items()}
    identities = dict(zip(tensors["masked"].tolist(), tensors["identities"].tolist(), strict=True))
    targets = dict(zip(tensors["slots"].tolist(), tensors["slot_targets"].tolist(), strict=True))
    ids, positions = tensors["input_ids"], tensors["position_ids"]
    num_ngrams = 0
    for row in range(48):
        text = rows.input_ids[slice(*rows.cu_seqlens[row : row + 2])].tolist()
        places = range(*tensors["cu_seqlens"][row : row + 2])
        context = [place for place in places if tensors["visible"][place]]
        slots = [place for place in places if not tensors["visible"][place]]
        assert [*context, *slots] == list(places)
        units = [spelled(objective, identities.get(place, int(ids[place]))) for place in context]
        # Every mask spelled out gives the text back, each token at its position.
        assert [token for unit in units for token in unit] == text
        assert positions[context].tolist() == np.cumsum([0, *map(len, units)])[:-1].tolist()
        assert len(context) == len(text) - sum(len(unit) - 1 for unit in units)
        # A slot for each token of a masked n-gram, at the position of the token.
        ngrams = [(positions[place], unit) for place, unit in zip(context, units, strict=True) if len(unit) > 1]
        assert positions[slots].tolist() == [first + i for first, unit in ngrams for i in range(len(unit))]
        assert tensors["slot_places"][np.isin(tensors["slots"], slots)].tolist() == [
            i for _, unit in ngrams for i in range(len(unit))
        ]
        assert [targets[place] for place in slots] == [token for _, unit in ngrams for token in unit]
        num_ngrams += len(ngrams)
    assert num_ngrams > 20
    assert batch.counts["comprehensive"] == len(targets)
    assert batch.counts["explicit"] == batch.counts["generator"] == len(identities)
    assert batch.counts["detection"] == tensors["visible"].sum()
    assert (ids[[*identities, *targets]] == objective.encoder.vocabulary.mask_id).all()


def test_nothing_masked_is_the_text_itself():
    objective = objective_with(mask_ratio=0.0)
    rows, batch = rows_of(objective).take(np.arange(24)), batch_of(objective, range(24))
    np.testing.assert_array_equal(batch.tensors["input_ids"], rows.input_ids)
    np.testing.assert_array_equal(batch.tensors["position_ids"], rows.places)
    context = BatchContext(keys=row_keys(seed=0, epoch=0, row_ids=rows.row_ids))
    np.testing.assert_array_equal(objective.collator().arranged(rows, context).input_ids, rows.input_ids)


def test_units_are_masked_at_the_rate():
    objective = objective_with(mask_ratio=0.3)
    objective_all = objective_with(mask_ratio=1.0)
    units = np.bincount(row_of(batch_of(objective_all, range(96)), "masked"), minlength=96)
    masked = np.bincount(row_of(batch_of(objective, range(96)), "masked"), minlength=96)
    np.testing.assert_array_equal(masked, np.maximum(1, np.rint(0.3 * units)))
    # Whatever may be masked is: the rest is special.
    everything = batch_of(objective_all, range(96)).tensors
    left = everything["visible"].clone().index_fill(0, everything["masked"], False)
    assert set(everything["input_ids"][left].tolist()) <= set(objective.encoder.vocabulary.special_ids)


def row_of(batch, name):
    return np.searchsorted(batch.tensors["cu_seqlens"].numpy(), batch.tensors[name].numpy(), side="right") - 1


@pytest.mark.parametrize("rows", ["packed", "padded"])
@torch.no_grad()
def test_a_slot_is_seen_by_itself_alone(rows):
    objective = objective_with(mask_ratio=0.5).double().eval()
    if rows == "padded":
        objective.encoder.packed = False
        objective.encoder.base.set_attn_implementation("sdpa")
    batch = batch_of(objective, range(12))
    slots, visible = batch.tensors["slots"], batch.tensors["visible"]

    def hidden(embeddings):
        return objective.encoder(batch, keys=visible, selves=True, embeddings=embeddings)

    given = objective.embeddings(batch, None)
    before, changed = hidden(given), given.clone()
    changed[slots[3], ::2] += 1.0
    moved = (hidden(changed) - before).abs().amax(1) > 1e-12
    assert moved.nonzero().flatten().tolist() == [slots[3].item()]
    # And it sees the text of its row.
    changed = given.clone()
    start = batch.tensors["cu_seqlens"][row_of(batch, "slots")[3]]
    changed[start, ::2] += 1.0
    moved = (hidden(changed) - before).abs().amax(1) > 1e-12
    assert moved[slots[3]]


@torch.no_grad()
def test_the_encoder_reads_what_was_made_up_as_one_embedding():
    objective = objective_with(mask_ratio=0.5)
    batch = batch_of(objective, range(24))
    masked, words = batch.tensors["masked"], objective.encoder.base.get_input_embeddings()
    filled_in = torch.arange(len(masked)) % 3
    filled_in = torch.where(filled_in == 0, -1, torch.where(filled_in == 1, 7, objective.num_words + 5))
    given = objective.embeddings(batch, filled_in)[masked]
    assert torch.equal(given[0], words.weight[objective.encoder.vocabulary.mask_id])
    assert torch.equal(given[1], words.weight[7])
    assert torch.equal(given[2], objective.ngrams.weight[5])
    slot = batch.tensors["slots"][4]
    place = batch.tensors["slot_places"][4]
    expected = words.weight[objective.encoder.vocabulary.mask_id] + objective.slot_places.weight[place]
    assert torch.allclose(objective.embeddings(batch, filled_in)[slot], expected)


class Knows(torch.nn.Module):
    """Is sure of one entry for each prediction."""

    def __init__(self, entries, size):
        super().__init__()
        self.entries, self.size = entries, size

    def forward(self, hidden):
        return 100.0 * torch.nn.functional.one_hot(self.entries, self.size).float()


def test_what_is_made_up_and_what_is_replaced():
    objective = objective_with(mask_ratio=0.5)
    batch = batch_of(objective, range(24))
    identities, size = batch.tensors["identities"], len(objective.forbidden)
    objective.generator_head = Knows(identities, size)
    output = objective(batch)
    assert int(output.metrics["replaced_ratio"][0]) == 0
    assert float(output.terms["generator"]) < 1e-3
    other = torch.where(identities == size - 1, size - 2, size - 1)
    objective.generator_head = Knows(other, size)
    output = objective(batch)
    assert int(output.metrics["replaced_ratio"][0]) == len(identities)
    assert int(output.metrics["replaced_ratio"][1]) == batch.counts["detection"] == int(batch.tensors["visible"].sum())
    # A special token is never made up, however sure the generator is.
    objective.generator_head = Knows(torch.full_like(identities, objective.encoder.vocabulary.mask_id), size)
    _, filled_in = objective._made_up(batch)
    assert not objective.forbidden[filled_in].any()
    assert filled_in.max() >= objective.num_words  # n-grams are made up too


def test_masks_that_stay_are_not_judged():
    objective = objective_with(mask_ratio=0.5, made_up_ratio=0.5)
    batch = batch_of(objective, range(48))
    made_up, masked = batch.tensors["made_up"], batch.tensors["masked"]
    assert abs(made_up.float().mean().item() - 0.5) < 4 * (0.25 / len(made_up)) ** 0.5
    judged = torch.zeros(batch.num_tokens, dtype=torch.bool).index_fill(0, batch.tensors["judged"], True)
    assert torch.equal(judged[masked], made_up)
    assert batch.counts["detection"] == int(judged.sum()) == int(batch.tensors["visible"].sum() - (~made_up).sum())
    _, filled_in = objective._made_up(batch)
    assert torch.equal(filled_in >= 0, made_up)


def test_terms_by_hand():
    objective = objective_with(mask_ratio=0.5, generator_ratio=None).double().eval()
    batch = batch_of(objective, range(12))
    assert set(objective.weights) == set(batch.counts) == {"explicit", "comprehensive"}
    tensors = batch.tensors
    with torch.no_grad():
        output = objective(batch)
        hidden = objective.encoder(batch, keys=tensors["visible"], selves=True, embeddings=objective.embeddings(batch, None))
        head = objective.identity_head
        known = head.norm(torch.nn.functional.gelu(head.dense(hidden[tensors["masked"]])))
        table = torch.cat([objective.encoder.base.get_input_embeddings().weight, objective.ngrams.weight])
        logits = known @ table.T + torch.cat([head.words.bias, head.ngrams.bias])
        explicit = -logits.log_softmax(1)[torch.arange(len(logits)), tensors["identities"]].sum()
        logits = objective.encoder.head(hidden[tensors["slots"]])
        comprehensive = -logits.log_softmax(1)[torch.arange(len(logits)), tensors["slot_targets"]].sum()
    assert output.terms["explicit"].item() == pytest.approx(explicit.item(), rel=1e-9)
    assert output.terms["comprehensive"].item() == pytest.approx(comprehensive.item(), rel=1e-9)
    assert float(output.metrics["ngram_ratio"][0]) == int((tensors["identities"] >= objective.num_words).sum())


def test_a_batch_without_a_generator_overfits():
    objective = objective_with(mask_ratio=0.5, generator_ratio=None).train()
    batch = batch_of(objective, range(4))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = sum(objective(batch).terms.values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_embeddings_are_shared_and_do_not_leave():
    objective = objective_with()
    words = objective.encoder.base.get_input_embeddings().weight
    for head in (objective.identity_head, objective.generator_head):
        assert head.words.weight is words
        assert head.ngrams.weight is objective.ngrams.weight
    assert sum(parameter is words for parameter in objective.parameters()) == 1


def test_the_export_is_a_plain_model(tmp_path):
    objective = objective_with()
    objective.export(tmp_path)
    _, told = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]


def test_models_and_lexicons_that_do_not_fit():
    found = {"ngrams": np.zeros(0, np.int32)}
    corpus = replace(PARALLEL, statistics={NgramLexicon(num_kept=(40, 20)): found})
    with pytest.raises(UserError, match=r"ngrams\.num_kept: leaves no n-gram"):
        objective_with(corpus=corpus)
    encoder = tiny_encoder(architecture="modernbert")
    assert isinstance(encoder.base.config, ModernBertConfig)
    with pytest.raises(UserError, match="its local attention does not reach"):
        objective_with(encoder=encoder)


@pytest.mark.parametrize("num_kept", [[], [0, 0]])
def test_a_lexicon_of_nothing_is_refused_before_anything_is_collected(num_kept):
    node = node_of("ernie_gram", ngrams={**NGRAMS, "num_kept": num_kept})
    (problem,) = problems_of(node, "objective", "objective")
    assert str(problem) == f"objective.ngrams.num_kept: {num_kept} keeps no n-gram; one of the numbers must be above 0."


def test_ngrams_with_special_tokens_are_left_out():
    objective = objective_with()
    found = {"ngrams": np.array([1, 7, -1, 8, 9, -1, 8, 9, 10], np.int32)}
    corpus = replace(PARALLEL, statistics={NgramLexicon(num_kept=(40, 20)): found})
    special = make_objective("ernie_gram", corpus=corpus, ngrams=NGRAMS)
    assert special.ngrams.num_embeddings == 2
    assert len(special.forbidden) == VOCABULARY_SIZE + 2
    assert objective.ngrams.num_embeddings > 2
