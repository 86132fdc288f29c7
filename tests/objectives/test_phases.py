from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_pairs import PARALLEL, batch_of, make_objective, node_of, rows_of, tiny_encoder, train

from mlmx.build import build, problems_of
from mlmx.data.batch import BatchContext
from mlmx.errors import UserError


def phases(encoder=None, **ends: float):
    parts = {name: {"objective": node_of(name), "until": end} for name, end in ends.items()}
    return build({**node_of("phases"), "parts": parts}, encoder or tiny_encoder(), PARALLEL, where="objective")


def records(folder: Path, key: str) -> list[float]:
    return [json.loads(line)[key] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def active(collator, progress: float | None) -> tuple[str, ...]:
    return tuple(collator.active(BatchContext(keys=np.zeros(0, np.int64), progress=progress)))


@pytest.mark.parametrize("name", ["rts", "clm"])
def test_the_first_phase_is_the_first_objective_alone(name, tmp_path):
    settings = {"max_steps": 6, "weight_decay": 0.1, "num_workers": 0}
    train(tmp_path / "alone", name, **settings)
    train(tmp_path / "phases", "phases", objective=phases(**{name: 0.5, "mlm": 1.0}), **settings)
    assert records(tmp_path / "phases", "loss")[:3] == records(tmp_path / "alone", "loss")[:3]
    # One schedule over both phases, whatever is trained, and the same rows.
    for key in ("learning_rate", "tokens", "epoch"):
        assert records(tmp_path / "phases", key) == records(tmp_path / "alone", key)


def test_the_optimiser_goes_on_and_leaves_what_is_done_or_not_begun(tmp_path):
    train(tmp_path, "phases", objective=phases(rts=0.5, mlm=1.0), max_steps=6, weight_decay=0.5, checkpoint_every_steps=3)
    (middle, moments), (end, last_moments) = (
        [load_file(tmp_path / "checkpoints" / f"step-0000000{step}" / f"{name}.safetensors") for name in ("model", "optimizer")]
        for step in (3, 6)
    )
    rts = [key for key in middle if key.startswith("part_rts.head.")]
    bias = [key for key in middle if key.startswith("encoder.head.")]
    layer = next(key for key in middle if "layer.0" in key and "query.weight" in key)
    start = phases(rts=0.5, mlm=1.0).state_dict()
    assert rts
    assert bias
    # The detector learns in the first phase only; afterwards it neither moves nor decays.
    for key in rts:
        assert not torch.equal(middle[key], start[key])
        assert torch.equal(end[key], middle[key])
        assert moments[f"{key}/step"] == last_moments[f"{key}/step"] == 3
    # The head of the second phase is as it was until its phase begins, and has no moments before.
    for key in bias:
        assert torch.equal(middle[key], start[key])
        assert f"{key}/step" not in moments
        assert last_moments[f"{key}/step"] == 3
    assert last_moments[f"{layer}/step"] == 6


def test_which_phase_it_is():
    collator = phases(mlm=1.0, rts=0.25, clm=0.5).collator()  # they go by their ends
    assert [active(collator, p)[0] for p in (0.0, 0.249, 0.25, 0.499, 0.5, 1.0)] == ["rts", "rts", "clm", "clm", "mlm", "mlm"]
    # All of the budget for one of them.
    assert active(phases(clm=0.0, mlm=1.0).collator(), 0.0) == ("mlm",)
    assert {active(phases(clm=1.0, mlm=1.0).collator(), p) for p in (0.0, 0.999, 1.0)} == {("clm",)}


def test_the_direction_of_attention_changes_with_the_targets():
    objective = make_objective("phases").eval()
    ids = torch.from_numpy(rows_of(objective).take(np.arange(1)).input_ids)
    for name, progress in (("clm", 0.24), ("mlm", 0.25)):
        batch = batch_of(objective, range(1), progress=progress)
        selected, targets = (batch.tensors[f"{name}/{key}"] for key in ("selected", "targets"))
        assert torch.equal(targets, ids[selected])
        assert (len(selected) == len(ids) - 1) == (name == "clm")

        def loss_at_2(last: int, name=name, batch=batch) -> torch.Tensor:
            tensors = dict(batch.tensors)
            tensors[f"{name}/input_ids"] = tensors[f"{name}/input_ids"].index_fill(0, torch.tensor([len(ids) - 1]), last)
            tensors |= {f"{name}/selected": torch.tensor([2]), f"{name}/targets": torch.tensor([7])}
            return objective(replace(batch, tensors=tensors)).terms[f"{name}/{name}"]

        # Whether the third token's prediction depends on the last token.
        assert torch.equal(loss_at_2(8), loss_at_2(9)) == (name == "clm")


def test_what_is_held_out_is_judged_by_the_last_phase(tmp_path):
    train(tmp_path, "phases", max_steps=4, validation_rows=8, validate_every_steps=1)
    assert all("validation/loss/mlm/mlm" in json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_budget_whose_steps_nobody_knows_is_refused(num_workers, tmp_path):
    with pytest.raises(UserError, match=r"objective.parts: follows the progress of the training.*trainer.max_steps, max_epochs"):
        train(tmp_path, "phases", max_steps=None, max_seconds=60.0, num_workers=num_workers)


def test_phases_fill_the_budget():
    node = node_of("phases")
    node["parts"]["mlm"]["until"] = 0.9
    (problem,) = problems_of(node, "objective", "objective")
    assert problem.where == "objective.parts.mlm.until"
    assert "must be 1.0 for the last phase, not 0.9" in problem.message
