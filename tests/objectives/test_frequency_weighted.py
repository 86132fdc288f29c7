from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_pairs import NUM_ENDINGS, PARALLEL, VOCABULARY_SIZE, batch_of, make_objective, node_of, rows_of, tiny_encoder, train

from mlmx.build import build
from mlmx.errors import UserError
from tests.tiny import SPECIALS

EVERYTHING = range(48)


def weighted(inner: str, alpha: float = 0.5, **settings):
    node = node_of("frequency_weighted", alpha=alpha, objective=node_of(inner, **settings))
    return build(node, tiny_encoder(), PARALLEL, where="objective")


@pytest.mark.parametrize(
    "name", ["mlm", "span", "rts", "electra", "lem", "starbucks_smae", "ernie_gram", "meap", "position_prediction"]
)
def test_with_alpha_0_it_is_the_other_objective(name):
    alone, wrapped = batch_of(make_objective(name), EVERYTHING), batch_of(weighted(name, alpha=0.0), EVERYTHING)
    assert wrapped.counts == alone.counts
    assert all(torch.equal(wrapped.tensors[key], tensor) for key, tensor in alone.tensors.items())
    terms = make_objective(name)(alone).terms
    assert {term: value.item() for term, value in weighted(name, alpha=0.0)(wrapped).terms.items()} == {
        term: value.item() for term, value in terms.items()
    }


def test_frequent_tokens_are_selected_less_often():
    rows = rows_of(make_objective("mlm"), 2000)
    taken = rows.take(np.arange(2000))
    ids = taken.input_ids[taken.words >= 0]
    counts = np.bincount(ids, minlength=200).astype(float)

    def selected(alpha: float) -> np.ndarray:
        objective = weighted("mlm", alpha, selection="exact", mask_ratio=0.3)
        targets = batch_of(objective, range(2000), rows=rows).tensors["targets"].numpy()
        return np.bincount(targets, minlength=200)

    # Twenty endings are shared by all words; their first pieces are their own.
    endings, firsts = slice(VOCABULARY_SIZE - NUM_ENDINGS, VOCABULARY_SIZE), slice(len(SPECIALS), VOCABULARY_SIZE - NUM_ENDINGS)
    assert counts[endings].mean() > 5 * counts[firsts].mean()
    odds = counts[endings].sum() / counts[firsts].sum()
    rising = [odds * selected(alpha)[firsts].sum() / selected(alpha)[endings].sum() for alpha in (0.0, 0.5, 1.0)]
    assert rising[0] == pytest.approx(1.0, abs=0.05)
    assert rising[1] > 1.5
    assert rising[2] > 2.0
    # As many as ever, all the same.
    assert selected(1.0).sum() == selected(0.0).sum()


@pytest.mark.parametrize(("name", "ratio"), [("meap", "input_mask_ratio"), ("ernie_gram", "mask_ratio")])
def test_units_that_are_masked_without_a_policy_are_weighted_too(name, ratio):
    masks = []
    for alpha in (0.0, 1.0):
        objective = weighted(name, alpha, **{ratio: 0.3})
        rows = rows_of(objective, 600)
        taken = rows.take(np.arange(600))
        batch = batch_of(objective, range(600), rows=rows)
        if name == "meap":
            masked = taken.input_ids[(batch.tensors["input_ids"].numpy() != taken.input_ids)]
        else:
            masked = batch.tensors["identities"].numpy()
        masks.append(np.bincount(masked, minlength=VOCABULARY_SIZE))
    assert masks[0].sum() == pytest.approx(masks[1].sum(), rel=0.05)
    # Twenty endings are shared by all words.
    endings = slice(VOCABULARY_SIZE - NUM_ENDINGS, VOCABULARY_SIZE)
    assert masks[1][endings].sum() < 0.8 * masks[0][endings].sum()


def test_a_decoder_s_masks_are_weighted_like_the_encoder_s():
    batch = batch_of(weighted("starbucks_smae", alpha=1.0), EVERYTHING)
    assert set(batch.tensors["selected"].tolist()) < set(batch.tensors["decoded"].tolist())


def test_schedules_and_parts_go_with_it(tmp_path):
    falling = {"_target_": "mlmx.schedules.Linear", "_version_": 1, "start": 0.6, "end": 0.2}
    node = node_of("frequency_weighted", objective=node_of("mlm", mask_ratio=falling))
    parts = {"a": {"objective": node, "weight": 1.0}}
    objective = build(node_of("sum", parts=parts), tiny_encoder(), PARALLEL, where="objective")
    batch = batch_of(objective, EVERYTHING, progress=0.5)
    assert batch.tensors["a/mask_ratio"].item() == pytest.approx(0.4)
    train(tmp_path, "sum", objective=objective, max_steps=2)


def test_an_objective_without_a_policy_is_refused():
    with pytest.raises(UserError, match=r"objective.objective: CausalLanguageModeling selects no tokens by a policy"):
        weighted("clm")
