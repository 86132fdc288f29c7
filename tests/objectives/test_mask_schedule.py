"""Any masking objective's ratio may follow a schedule."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_pairs import NAMES, PARALLEL, batch_of, make_objective, node_of, rows_of, tiny_encoder, train

from mlmx.build import build, problems_of
from mlmx.data.batch import BatchContext
from mlmx.errors import UserError

SETTINGS = ("mask_ratio", "replace_ratio", "input_mask_ratio", "hidden_ratio")
MASKING = [name for name in NAMES if set(SETTINGS) & set(node_of(name))]
# What a falling ratio must stay below.
OTHERS = {"starbucks_smae": {"decoder_mask_ratio": 0.7}}
FALLING = {"_target_": "mlmx.schedules.Linear", "_version_": 1, "start": 0.6, "end": 0.2}


def setting_of(name: str) -> str:
    return next(setting for setting in SETTINGS if setting in node_of(name))


@pytest.mark.parametrize("name", MASKING)
def test_a_scheduled_ratio_is_at_each_progress_what_the_number_would_be(name):
    others = OTHERS.get(name, {})
    scheduled = make_objective(name, **{setting_of(name): FALLING}, **others)
    rows = rows_of(scheduled)
    for progress, ratio in ((0.0, 0.6), (0.5, 0.4), (1.0, 0.2)):
        batch = batch_of(scheduled, range(8), rows=rows, progress=progress)
        tensors = dict(batch.tensors)
        assert tensors.pop("mask_ratio").item() == pytest.approx(ratio)
        fixed = batch_of(make_objective(name, **{setting_of(name): ratio}, **others), range(8), rows=rows)
        assert batch.counts == fixed.counts
        assert tensors.keys() == fixed.tensors.keys()
        assert all(torch.equal(tensor, fixed.tensors[key]) for key, tensor in tensors.items())
        value, count = scheduled(batch).metrics["mask_ratio"]
        assert (float(value), float(count)) == (pytest.approx(ratio), 1.0)


def test_a_decoder_has_more_masks_than_a_schedule_s_largest_ratio():
    rising = {"_target_": "mlmx.schedules.Piecewise", "_version_": 1, "points": [[0, 0.1], [0.3, 0.5]], "between": "linear"}
    for schedule, most in ((FALLING, 0.6), (rising, 0.5)):
        with pytest.raises(UserError, match=rf"decoder_mask_ratio: 0\.4 is below mask_ratio={most}"):
            make_objective("starbucks_smae", mask_ratio=schedule)


def test_the_ratio_is_logged_and_falls(tmp_path):
    train(
        tmp_path, "mlm", objective=make_objective("mlm", mask_ratio=FALLING), max_steps=4, micro_batch_tokens=1, validation_rows=8
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["mask_ratio"] for line in lines] == pytest.approx([0.6, 0.5, 0.4, 0.3], rel=1e-6)
    # What is held out is masked as at the end.
    assert lines[-1]["validation/mask_ratio"] == pytest.approx(0.2)


def test_an_unknown_progress_is_an_error(tmp_path):
    objective = make_objective("mlm", mask_ratio=FALLING)
    with pytest.raises(UserError, match="objective: follows the progress of the training"):
        objective.collator()(rows_of(objective).take(np.arange(2)), BatchContext(keys=np.arange(2)))
    with pytest.raises(UserError, match="objective: follows the progress of the training"):
        train(tmp_path, "mlm", objective=objective, max_steps=None, max_flops=1e12)


def test_a_constant_schedule_is_the_number():
    node = {"_target_": "mlmx.schedules.Constant", "_version_": 1, "value": 0.15}
    scheduled, fixed = make_objective("mlm", mask_ratio=node), make_objective("mlm")
    batch, expected = batch_of(scheduled, range(8)), batch_of(fixed, range(8))
    assert torch.equal(batch.tensors["input_ids"], expected.tensors["input_ids"])


def test_overrides_put_a_schedule_in_the_place_of_a_number():
    node = node_of("mlm", "+schedule@objective.mask_ratio=cosine", "objective.mask_ratio.start=0.5")
    collator = build(node, tiny_encoder(), PARALLEL, where="objective").collator()
    assert collator.policy.ratio.at(0.0) == 0.5


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        (1.5, ["objective.mask_ratio: 1.5 is not valid: Input should be less than or equal to 1."]),
        ("high", ["objective.mask_ratio: 'high' is not valid: Input should be a valid number."]),
        ({**FALLING, "end": 2.0}, ["objective.mask_ratio.end: 2.0 is not valid: Input should be less than or equal to 1."]),
    ],
)
def test_what_is_neither_a_ratio_nor_a_schedule_is_told_once(ratio, told):
    assert list(map(str, problems_of(node_of("mlm", mask_ratio=ratio), "objective", "objective"))) == told


def test_another_component_is_no_schedule():
    (problem,) = problems_of(node_of("mlm", mask_ratio=node_of("rts")), "objective", "objective")
    assert problem.where == "objective.mask_ratio"
