"""What every objective keeps; each YAML in ``conf/objective`` is held to it without being listed anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pairs import (
    LAYOUTS,
    NAMES,
    batch_of,
    first_gradient,
    make_objective,
    node_of,
    precise_objective,
    rows_of,
    tiny_encoder,
    train,
)

from mlmx.data.batch import Batch
from mlmx.driver.stages import drops_head
from mlmx.models.load import load_encoder
from mlmx.objectives.objective import Objective
from mlmx.training.parallel import ProcessGroup
from mlmx.training.trainer import Stopped
from tests.tiny import run_ranks

pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def loss_of(objective: Objective, batches: list[Batch]) -> torch.Tensor:
    """The loss as the design defines it: summed terms over counts totalled over all micro-batches."""
    counts = {term: sum(batch.counts.get(term, 0) for batch in batches) for term in objective.weights}
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        weights = objective.weights_of(batch)
        for term, value in objective(batch).terms.items():
            total = total + weights[term] * value / max(counts[term], 1)
    return total


def gradient(objective: Objective, batches: list[Batch]) -> torch.Tensor:
    objective.zero_grad()
    loss_of(objective, batches).backward()
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def test_terms_weights_and_counts_have_the_same_names(name):
    objective = make_objective(name)
    batch = batch_of(objective, range(8))
    output = objective(batch)
    assert set(output.terms) == set(objective.weights_of(batch)) == set(batch.counts) <= set(objective.weights)
    assert all(term.ndim == 0 and term.dtype == torch.float32 for term in output.terms.values())
    assert all(count > 0 for count in batch.counts.values())
    for total, count in output.metrics.values():
        assert 0 <= float(total) <= float(count)


def test_accumulation_gives_the_same_gradient(name):
    objective = make_objective(name).double()
    if objective.batch_coupled:
        pytest.skip("examples interact by design; the trainer refuses to cut such batches up")
    whole = gradient(objective, [batch_of(objective, range(8))])
    parts = gradient(objective, [batch_of(objective, [row]) for row in range(8)])
    assert whole.norm() > 0
    assert (whole - parts).norm() <= 1e-10 * whole.norm()


def test_accumulation_gives_the_same_losses(name, tmp_path):
    if make_objective(name).batch_coupled:
        pytest.skip("examples interact by design; the trainer refuses to cut such batches up")
    # Rows are longer than one token, so each is a micro-batch of its own: 1 x 8 against 8 x 1.
    train(tmp_path / "whole", name, max_steps=8)
    train(tmp_path / "parts", name, max_steps=8, micro_batch_tokens=1)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


@pytest.fixture(scope="module", params=LAYOUTS)
def two_ranks(request, tmp_path_factory) -> Path:
    """All objectives trained by one and the same pair of processes, with weights that both have or that are divided."""
    folder = tmp_path_factory.mktemp("two") / request.param
    run_ranks(2, "tests.objectives.tiny_pairs", folder)
    return folder


def test_two_ranks_equal_one(name, tmp_path, two_ranks):
    _, num_steps = LAYOUTS[two_ranks.name]
    train(tmp_path, name, objective=precise_objective(name), max_steps=num_steps)
    assert len(losses(tmp_path)) == num_steps
    assert losses(two_ranks / name) == pytest.approx(losses(tmp_path), rel=1e-6)
    one, two = first_gradient(tmp_path), first_gradient(two_ranks / name)
    assert (two - one).norm() <= 1e-6 * one.norm()


class StopAfterSix(ProcessGroup):
    """Asks for a stop in the sixth step: each step gathers twice."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered = 0

    def gather(self, value):
        self.gathered += 1
        if self.gathered == 11:
            self.request_stop()
        return super().gather(value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_six_and_six_steps_are_bitwise_twelve(name, num_workers, tmp_path):
    whole, _ = train(tmp_path / "whole", name, max_steps=12)
    with pytest.raises(Stopped, match="after step 6 of 12"):
        train(tmp_path / "halves", name, max_steps=12, num_workers=num_workers, processes=StopAfterSix())
    halves, _ = train(tmp_path / "halves", name, max_steps=12, num_workers=num_workers)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    expected = whole.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in halves.state_dict().items())


def test_one_batch_overfits(name):
    # What the model confuses decides what it is given next; without that, a batch stays what it is.
    settings = {"beta": 0.0} if "beta" in node_of(name) else {}
    objective = make_objective(name, tiny_encoder(hidden_size=64), **settings).train()
    batch = batch_of(objective, range(4))
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-2)
    first = loss_of(objective, [batch]).item()
    for step in range(120):
        optimizer.zero_grad()
        loss = loss_of(objective, [batch])
        loss.backward()
        optimizer.step()
        objective.after_step(step)
    assert loss.item() < 0.1 * first


def test_trainable_parameters_get_a_gradient_and_frozen_ones_none(name):
    objective = make_objective(name)
    # Over several steps, since an objective may have parts that take turns.
    gradient(objective, [batch_of(objective, range(16), step=step, progress=step / 4) for step in range(4)])
    without = [key for key, p in objective.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # Adding a constant to all scores of a query changes nothing, so the keys' biases have no gradient but for rounding.
    assert not [key for key in without if "key.bias" not in key]
    assert not [key for key, p in objective.named_parameters() if not p.requires_grad and p.grad is not None]


def test_packed_equals_padded(name):
    objective = make_objective(name).double().eval()
    batch = batch_of(objective, range(12))
    encoder = objective.encoder
    assert encoder.packed
    packed = objective(batch)
    encoder.packed = False
    encoder.base.set_attn_implementation("sdpa")
    padded = objective(batch)
    for term, value in packed.terms.items():
        assert padded.terms[term].item() == pytest.approx(value.item(), rel=1e-10)


def test_exported_encoder_gives_equal_embeddings(name, tmp_path):
    objective, _ = train(tmp_path / "stage", name, max_steps=2)
    objective.export(tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder").eval()
    batch = batch_of(objective, range(8))
    with torch.no_grad():
        assert torch.equal(loaded(batch), objective.encoder(batch))


def test_batches_are_functions_of_seed_epoch_and_row(name):
    objective = make_objective(name)
    rows = rows_of(objective)
    again = {key: tensor.numpy() for key, tensor in batch_of(objective, range(8), rows=rows).tensors.items()}
    for key, tensor in batch_of(make_objective(name), range(8)).tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), again[key])
    others = (batch_of(objective, range(8), epoch=1), batch_of(objective, range(8), seed=1))
    for other in others:
        changed = [key for key, tensor in other.tensors.items() if not np.array_equal(tensor.numpy(), again.get(key))]
        assert changed or not torch.equal(other.keys, batch_of(objective, range(8)).keys)


def test_the_yaml_says_whether_a_head_is_left(name):
    node = node_of(name)
    assert drops_head(node) == (make_objective(name).exported.head is None)


def test_rows_without_predictions_are_harmless(name):
    if "mask_ratio" not in node_of(name):
        pytest.skip("has no ratio that may come to 0")
    nothing = {"_target_": "mlmx.schedules.Constant", "_version_": 1, "value": 0.0}
    objective = make_objective(name, mask_ratio=nothing)
    batch = batch_of(objective, range(4))
    # What judges every token, such as a detector, has something to judge all the same.
    assert 0 in batch.counts.values()
    found = gradient(objective, [batch])
    assert found.isfinite().all()
    assert bool(found.any()) == any(batch.counts.values())
