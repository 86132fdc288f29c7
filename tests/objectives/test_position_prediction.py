from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_pairs import batch_of, make_objective, rows_of, tiny_encoder
from transformers import AutoModelForMaskedLM

from mlmx.data.batch import Batch
from mlmx.errors import UserError
from mlmx.models.encoder import Encoder
from mlmx.objectives.objective import Objective
from tests.models.test_encoder import config
from tests.tiny import numbered_tokenizer


def eurobert() -> Encoder:
    """Its positions are rotations."""
    torch.manual_seed(0)
    words = numbered_tokenizer(145)
    return Encoder(AutoModelForMaskedLM.from_config(config("eurobert", vocab_size=145, mask_token_id=4)), words)


def logits(objective: Objective, batch: Batch) -> torch.Tensor:
    hidden = objective.encoder(batch, direction="bidirectional", keys=batch.tensors["visible"])
    return objective.head(hidden).detach()


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("make_encoder", [tiny_encoder, eurobert])
def test_shuffled_tokens_have_shuffled_predictions(make_encoder, ratio):
    objective = make_objective("position_prediction", make_encoder(), hidden_ratio=ratio).eval()
    batch = batch_of(objective, range(6))
    bounds = batch.tensors["cu_seqlens"].tolist()
    generator = torch.Generator().manual_seed(0)
    order = torch.cat([start + torch.randperm(end - start, generator=generator) for start, end in pairwise(bounds)])
    shuffled = {name: batch.tensors[name][order] for name in ("input_ids", "position_ids", "visible")}
    other = replace(batch, tensors={**batch.tensors, **shuffled})
    torch.testing.assert_close(logits(objective, other), logits(objective, batch)[order], rtol=1e-5, atol=1e-5)


def test_hidden_tokens_are_seen_by_themselves_alone_in_all_layers():
    objective = make_objective("position_prediction").eval()
    batch = batch_of(objective, range(1))
    visible = batch.tensors["visible"]
    before = logits(objective, batch)
    for place in range(1, len(visible) - 1):
        ids = batch.tensors["input_ids"].clone()
        ids[place] = 5 if ids[place] != 5 else 6
        changed = (logits(objective, replace(batch, tensors={**batch.tensors, "input_ids": ids})) != before).any(dim=1)
        assert changed[place]
        assert changed[torch.arange(len(changed)) != place].any() == visible[place]


def test_what_is_hidden_and_what_is_predicted():
    objective = make_objective("position_prediction", hidden_ratio=0.75)
    rows = rows_of(objective).take(np.arange(48))
    batch = batch_of(objective, range(48))
    hidden = ~batch.tensors["visible"].numpy()
    assert not hidden[rows.special].any()
    num_ordinary = np.add.reduceat((~rows.special).astype(int), rows.cu_seqlens[:-1])
    np.testing.assert_array_equal(np.add.reduceat(hidden.astype(int), rows.cu_seqlens[:-1]), np.rint(0.75 * num_ordinary))
    assert not batch.tensors["position_ids"].any()
    np.testing.assert_array_equal(batch.tensors["targets"].numpy(), rows.places[~rows.special])
    assert batch_of(make_objective("position_prediction", hidden_ratio=0.0), range(48)).tensors["visible"].all()


def test_no_place_beyond_the_row_is_possible():
    # With equal logits for all classes, the loss is the logarithm of the number of places in each row.
    objective = make_objective("position_prediction").eval()
    objective.head.weight.data.zero_()
    batch = batch_of(objective, range(12))
    lengths = batch.tensors["cu_seqlens"].diff().tolist()
    assert len(set(lengths)) > 1
    output = objective(batch)
    assert output.terms["position"].item() == pytest.approx(sum((n - 2) * math.log(n) for n in lengths), rel=1e-6)
    chance, count = output.metrics["accuracy_chance"]
    assert float(chance) == pytest.approx(sum((n - 2) / n for n in lengths), rel=1e-6)
    assert int(count) == sum(n - 2 for n in lengths)


def test_the_ceiling_is_one_of_each_kind():
    objective = make_objective("position_prediction").eval()
    batch = batch_of(objective, range(48))
    rows = batch.tensors["input_ids"].split(batch.tensors["cu_seqlens"].diff().tolist())
    ceiling, count = objective(batch).metrics["accuracy_ceiling"]
    assert int(ceiling) == sum(len(set(row[1:-1].tolist())) for row in rows) < int(count)
    # Tokens of one id in one row have one prediction, visible or not.
    predicted = logits(objective, batch)
    row = np.arange(48).repeat(batch.tensors["cu_seqlens"].diff().numpy())
    ids = batch.tensors["input_ids"].numpy()
    twins = [(i, j) for i in range(len(ids)) for j in range(i) if (row[i], ids[i]) == (row[j], ids[j])]
    assert len({bool(batch.tensors["visible"][i]) for pair in twins for i in pair}) == 2
    for i, j in twins:
        torch.testing.assert_close(predicted[i], predicted[j], rtol=1e-5, atol=1e-5)


def test_models_that_tell_positions_otherwise_are_refused():
    def encoder(family: str) -> Encoder:
        torch.manual_seed(0)
        return Encoder(AutoModelForMaskedLM.from_config(config(family)), numbered_tokenizer(64))

    for family in ("modernbert", "mpnet"):
        with pytest.raises(UserError, match=f"'{family}' tells positions by other means"):
            make_objective("position_prediction", encoder(family))
    with pytest.raises(UserError, match="'deberta-v2', which runs on padded rows, ignores bidirectional attention to some tokens"):
        make_objective("position_prediction", encoder("deberta-v2"))
