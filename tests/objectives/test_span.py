from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_pairs import VOCABULARY_SIZE, batch_of, make_objective, rows_of, tiny_encoder
from tokenizers.processors import TemplateProcessing

from mlmx import keyed
from mlmx.masking.spans import GeometricSpans
from mlmx.masking.units import Draws
from tests.masking.synthetic_rows import draws_of, make_rows, random_sizes
from tests.tiny import numbered_tokenizer, scratch_encoder

PARITIES = ["paper", "released_code"]


def spans_of(selection) -> list[tuple[int, int, int]]:
    """(row, first place, last place) of each unit that is corrupted alike."""
    spans: dict[tuple[int, int], list[int]] = {}
    for row, unit, place in zip(selection.row.tolist(), selection.units.tolist(), selection.places.tolist(), strict=True):
        spans.setdefault((row, unit), []).append(place)
    for places in spans.values():
        assert places == list(range(places[0], places[-1] + 1))
    return [(row, places[0], places[-1]) for (row, _), places in spans.items()]


@pytest.mark.parametrize("parity", PARITIES)
def test_spans_are_runs_apart_from_each_other_within_the_row_and_meet_the_budget(parity):
    rows = make_rows(random_sizes(300, 3, 60))
    selection = GeometricSpans(0.15, 0.2, 10, parity)(rows, draws_of(rows))
    assert not rows.special[selection.positions].any()
    budget = np.ceil(0.15 * np.bincount(rows.row_of_token[~rows.special], minlength=300))
    found = np.bincount(selection.row, minlength=300)
    longest_word = 4
    if parity == "released_code":
        np.testing.assert_array_equal(found, budget)
    else:
        assert ((budget <= found) & (found < budget + longest_word)).all()
        # Words are whole.
        picked = set(selection.positions.tolist())
        row_and_word = np.stack([rows.row_of_token, rows.words], axis=1)
        chosen = {tuple(pair) for pair in row_and_word[selection.positions].tolist()}
        assert all(i in picked for i, pair in enumerate(row_and_word.tolist()) if tuple(pair) in chosen)
    last_of_row = {}
    for row, first, last in spans_of(selection):
        assert first > last_of_row.get(row, -1) + 1, "spans that touch are one"
        last_of_row[row] = last


def test_lengths_in_words_are_geometric_and_cut_off():
    # Rows of one-piece words so long, and a budget so small, that each has one whole span, away from the end.
    rows = make_rows([[1] * 400] * 3000)
    lengths = GeometricSpans(0.2, 0.2, 10, "paper")._lengths(draws_of(rows).of("length", np.arange(3000), np.zeros(3000, np.int64)))
    weights = 0.8 ** np.arange(10)
    expected = weights / weights.sum()
    counts = np.bincount(lengths, minlength=11)[1:]
    assert len(counts) == 10
    assert ((counts - 3000 * expected) ** 2 / (3000 * expected)).sum() < 27.9  # chi square with 9 degrees of freedom, p = 0.001
    assert lengths.mean() == pytest.approx(float((np.arange(1, 11) * expected).sum()), abs=0.15)  # 3.8 words


def test_long_words_begin_more_spans_in_the_released_code_only():
    # Every other word has 9 pieces; a span of one word each.
    rows = make_rows([[1, 9] * 10] * 400)
    shares = {}
    for parity in PARITIES:
        selection = GeometricSpans(0.01, 0.2, 1, parity)(rows, draws_of(rows))
        first = rows.words[selection.positions[np.unique(selection.row, return_index=True)[1]]]
        shares[parity] = float((first % 2 == 1).mean())
    assert shares["paper"] == pytest.approx(0.5, abs=0.1)
    assert shares["released_code"] == pytest.approx(0.9, abs=0.06)


def test_one_action_per_span():
    objective = make_objective("span", mask_ratio=0.4)
    batch = batch_of(objective, range(48))
    mask_id = objective.encoder.vocabulary.mask_id
    selected, targets = batch.tensors["selected"], batch.tensors["targets"]
    given = batch.tensors["input_ids"][selected]
    runs = torch.tensor_split(torch.arange(len(selected)), (selected.diff() > 1).nonzero()[:, 0] + 1)
    masked = [(given[run] == mask_id).tolist() for run in runs]
    assert all(all(of_run) or not any(of_run) for of_run in masked)
    kept = [bool((given[run] == targets[run]).all()) for run in runs]
    assert 0.6 < np.mean([of_run[0] for of_run in masked]) < 0.95
    assert 0 < np.mean(kept) < 0.3


@pytest.mark.parametrize("parity", PARITIES)
def test_boundaries_stand_right_outside_of_their_span_and_inside_of_the_row(parity):
    objective = make_objective("span", parity=parity, mask_ratio=0.4, max_boundary_tokens=3)
    rows = rows_of(objective)
    taken = rows.take(np.arange(48))
    batch = batch_of(objective, range(48), rows=rows)
    selected = set(batch.tensors["selected"].tolist())
    before, after = batch.tensors["boundaries"].numpy().T
    in_span = batch.tensors["in_span"].numpy()
    own = before + 1 + in_span
    assert in_span.max() == 2
    assert (in_span == 0).any()
    np.testing.assert_array_equal(batch.tensors["boundary_targets"].numpy(), taken.input_ids[own])
    for row_of in (before, after):
        np.testing.assert_array_equal(taken.row_of_token[row_of], taken.row_of_token[own])
    assert not selected & {*before.tolist(), *after.tolist()}
    assert all(set(range(b + 1, a)) <= selected for b, a in zip(before.tolist(), after.tolist(), strict=True))
    at_the_end = taken.special[before] | taken.special[after]
    assert at_the_end.any() == (parity == "paper")
    if parity == "paper":
        # Every span has its first places predicted, and only those.
        places = np.concatenate(
            [np.arange(len(run)) for run in np.split(sorted(selected), np.flatnonzero(np.diff(sorted(selected)) > 1) + 1)]
        )
        assert batch.counts == {"mlm": len(selected), "sbo": int((places < 3).sum())}


@pytest.mark.parametrize("template", [None, "[CLS] $A", "$A [SEP]"])
@pytest.mark.parametrize("parity", PARITIES)
def test_texts_without_special_tokens_have_no_boundaries_at_their_ends(parity, template):
    tokenizer = numbered_tokenizer(VOCABULARY_SIZE)
    specials = [("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)]
    tokenizer._tokenizer.post_processor = None if template is None else TemplateProcessing(single=template, special_tokens=specials)
    objective = make_objective("span", scratch_encoder(tokenizer, max_length=128), parity=parity, mask_ratio=0.5)
    rows = rows_of(objective)
    taken = rows.take(np.arange(48))
    batch = batch_of(objective, range(48), rows=rows)
    before, after = batch.tensors["boundaries"].numpy().T
    assert before.min() >= 0
    assert after.max() < len(taken.input_ids)
    np.testing.assert_array_equal(taken.row_of_token[before], taken.row_of_token[after])
    assert 0 < batch.counts["sbo"] < batch.counts["mlm"]
    assert torch.isfinite(objective(batch).terms["sbo"])


def test_the_boundary_term_by_hand():
    objective = make_objective("span", mask_ratio=0.4).eval()
    batch = batch_of(objective, range(4))
    hidden = objective.encoder(batch)
    head = objective.boundary_head
    (first, _, first_norm, second, _, second_norm) = head.layers
    total = 0.0
    for (before, after), place, target in zip(
        batch.tensors["boundaries"].tolist(),
        batch.tensors["in_span"].tolist(),
        batch.tensors["boundary_targets"].tolist(),
        strict=True,
    ):
        known = torch.cat([hidden[before], hidden[after], head.places.weight[place]])
        inner = F.layer_norm(F.gelu(first.weight @ known + first.bias), (32,), first_norm.weight, first_norm.bias)
        outer = F.layer_norm(F.gelu(second.weight @ inner + second.bias), (32,), second_norm.weight, second_norm.bias)
        logits = objective.encoder.base.get_input_embeddings().weight @ outer + head.decoder.bias
        total -= torch.log_softmax(logits, 0)[target].item()
    assert objective(batch).terms["sbo"].item() == pytest.approx(total, rel=1e-5)


def test_a_span_is_not_told_by_its_own_tokens():
    # The vectors that predict a span come from outside of it; its own places have no part in them.
    objective = make_objective("span", mask_ratio=0.4).eval()
    batch = batch_of(objective, range(4))
    hidden = objective.encoder(batch).detach().requires_grad_()
    known = objective.boundary_head.known(hidden, batch.tensors["boundaries"], batch.tensors["in_span"])
    known.square().sum().backward()
    touched = set(hidden.grad.abs().sum(1).nonzero()[:, 0].tolist())
    assert touched == set(batch.tensors["boundaries"].flatten().tolist())
    assert not touched & set(batch.tensors["selected"].tolist())


def test_the_words_of_the_boundary_head_are_the_encoders():
    objective = make_objective("span")
    assert objective.boundary_head.decoder.weight is objective.encoder.base.get_input_embeddings().weight
    assert objective.weights == {"mlm": 1.0, "sbo": 1.0}


def test_nothing_of_the_boundary_head_is_exported(tmp_path):
    objective = make_objective("span", tiny_encoder())
    objective.export(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert names
    assert not [name for name in names if "boundary" in name or "places" in name]


def test_the_draws_of_a_row_do_not_depend_on_the_rows_beside_it():
    sizes = random_sizes(20, 3, 40)
    together = make_rows(sizes)
    keys = keyed.row_keys(seed=0, epoch=0, row_ids=np.arange(20))
    policy = GeometricSpans(0.15, 0.2, 10, "paper")
    whole = policy(together, Draws(keys))
    for row in range(20):
        alone = policy(make_rows([sizes[row]]), Draws(keys[row : row + 1]))
        np.testing.assert_array_equal(alone.places, whole.places[whole.row == row])
