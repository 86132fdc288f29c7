from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_pairs import PARALLEL, batch_of, make_objective, node_of, tiny_encoder, train

from mlmx.build import build
from mlmx.errors import UserError
from mlmx.objectives.mto import by_row


def wrapped(inner: str = "mlm", encoder=None, **settings):
    node = node_of("mto", objective=node_of(inner), **settings)
    return build(node, encoder or tiny_encoder(), PARALLEL, where="objective")


def test_without_weights_it_is_the_other_objective(tmp_path):
    train(tmp_path / "mlm", "mlm", max_steps=3)
    train(tmp_path / "mto", "mto", objective=wrapped(singularity_weight=0.0, evenness_weight=0.0), max_steps=3)
    alone, mto = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("mlm", "mto")
    )
    assert [line["loss"] for line in mto] == [line["loss"] for line in alone]
    assert all(line["loss/singularity"] > 0 for line in mto)


@torch.no_grad()
def test_terms_equal_those_of_a_loop_over_rows():
    objective = wrapped("span").double().eval()
    batch = batch_of(objective, range(20))
    ids, bounds = batch.tensors["input_ids"], batch.tensors["cu_seqlens"].tolist()
    special = torch.isin(ids, torch.tensor(objective.encoder.vocabulary.special_ids))
    mask_id = objective.encoder.vocabulary.mask_id
    words = objective.encoder.base.get_input_embeddings().weight
    states = objective.encoder.hidden_states(batch)[0]
    cosine = torch.nn.functional.cosine_similarity
    singularity, evenness, counts = 0.0, 0.0, {"singularity": 0, "evenness": 0}
    for start, end in pairwise(bounds):
        row = torch.arange(start, end)
        visible, masks = row[~special[row]], row[ids[row] == mask_id]
        singularity += float(cosine(words[ids[visible]], words[mask_id][None]).square().sum())
        counts["singularity"] += len(visible)
        if len(visible) > 1:
            counts["evenness"] += len(masks)
            for mask in masks:
                p = (cosine(states[visible], states[mask][None]) / 0.1).softmax(0)
                evenness += 1 + float((p * p.log()).sum()) / math.log(len(visible))
    output = objective(batch)
    assert counts["evenness"] > 20
    assert {term: batch.counts[term] for term in counts} == counts
    assert output.terms["singularity"].item() == pytest.approx(singularity, rel=1e-9)
    assert output.terms["evenness"].item() == pytest.approx(evenness, rel=1e-9)


def test_weights_of_frequency_go_around_it_as_well():
    node = node_of("frequency_weighted", objective=node_of("mto"))
    around = build(node, tiny_encoder(), PARALLEL, where="objective")
    inside = wrapped("frequency_weighted")
    one, other = (batch_of(objective, range(20)) for objective in (around, inside))
    assert one.counts == other.counts
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def test_a_mask_that_is_orthogonal_or_equally_near_costs_nothing():
    objective = wrapped().eval()
    words = objective.encoder.base.get_input_embeddings().weight
    with torch.no_grad():
        words[:, 0] = 0.0
        words[objective.encoder.vocabulary.mask_id] = torch.eye(32)[0]
    batch = batch_of(objective, range(8))
    assert objective(batch).terms["singularity"].item() == 0.0
    with torch.no_grad():
        words[:] = torch.ones(32)
        objective.encoder.base.embeddings.position_embeddings.weight[:] = 0.0
    terms = objective(batch).terms
    assert terms["singularity"].item() == pytest.approx(batch.counts["singularity"], rel=1e-6)
    assert terms["evenness"].item() == pytest.approx(0.0, abs=1e-4)


def test_the_mask_is_driven_away_from_the_words():
    objective = wrapped(singularity_weight=1.0)
    batch = batch_of(objective, range(16))
    words = objective.encoder.base.get_input_embeddings().weight
    before = objective.singularity(batch)
    before.backward()
    with torch.no_grad():
        words -= 1e-5 * words.grad
    assert objective.singularity(batch) < before


@pytest.mark.parametrize("name", ["rts", "clm", "electra"])
def test_what_is_no_masked_language_model_is_refused(name):
    with pytest.raises(UserError, match=r"objective\.objective: \w+ is no masked language model"):
        wrapped(name)


def test_what_never_shows_the_encoder_a_mask_is_refused():
    with pytest.raises(UserError, match=r"objective\.objective\.corruption\.mask: is 0, so that there is no mask token"):
        wrapped("slm")


def test_around_another_wrapper():
    counted = node_of("frequency_weighted", objective=node_of("mlm"))
    objective = build(node_of("mto", objective=counted), tiny_encoder(), PARALLEL, where="objective")
    batch = batch_of(objective, range(8))
    assert set(objective(batch).terms) == {"mlm", "singularity", "evenness"}
    assert not torch.equal(batch.tensors["input_ids"], batch_of(make_objective("mlm"), range(8)).tensors["input_ids"])


def test_positions_by_row():
    assert by_row(np.array([1, 2, 5]), np.array([0, 0, 0, 1, 2, 2]), 3).tolist() == [[1, 2], [-1, -1], [5, -1]]


def test_a_schedule_of_the_other_objective_goes_on():
    falling = {"_target_": "mlmx.schedules.Linear", "_version_": 1, "start": 1.0, "end": 0.0}
    node = node_of("mto", objective=node_of("mlm", mask_ratio=falling))
    objective = build(node, tiny_encoder(), PARALLEL, where="objective")
    full = batch_of(objective, range(4))
    assert full.counts["mlm"] > batch_of(make_objective("mto"), range(4)).counts["mlm"]
    # Nothing is masked at the end: the terms have nothing to sum over, and say so.
    empty = batch_of(objective, range(4), progress=1.0)
    assert empty.counts["mlm"] == empty.counts["evenness"] == 0
    assert objective(empty).terms["evenness"].item() == 0.0
