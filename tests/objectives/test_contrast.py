"""What contrastive objectives share: exact across processes and chunks."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from contrast_ranks import CHUNKS, NUM_QUERIES, SHARES, batch_of, encoder, loss_and_gradient, objective

from mlmx.models.encoder import set_dropout
from mlmx.objectives.contrast import contrastive_loss, gather_rows
from tests.tiny import run_ranks


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contrast")
    run_ranks(2, "tests.objectives.contrast_ranks", folder)
    return folder


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
@pytest.mark.parametrize("share", SHARES)
def test_two_processes_give_the_loss_and_gradient_of_one(share, chunk_tokens, two_ranks):
    model = objective(encoder())
    loss, gradient = loss_and_gradient(model, batch_of(model, list(range(NUM_QUERIES))))
    found = json.loads((two_ranks / f"{share}-{chunk_tokens}.json").read_text())
    assert sum(found["losses"]) == pytest.approx(loss, rel=1e-10)
    assert all(part > 0 for part in found["losses"]) == (SHARES[share][1] is not None)
    assert (torch.tensor(found["gradient"], dtype=torch.float64) - gradient).norm() <= 1e-10 * gradient.norm()


@pytest.mark.parametrize("chunk_tokens", [1, 24, 10_000])
def test_chunks_change_neither_loss_nor_gradient(chunk_tokens):
    whole, cut = objective(encoder()), objective(encoder(), chunk_tokens)
    batch = batch_of(whole, list(range(NUM_QUERIES)))
    (loss, gradient), (cut_loss, cut_gradient) = loss_and_gradient(whole, batch), loss_and_gradient(cut, batch)
    assert cut_loss == pytest.approx(loss, rel=1e-10)
    assert (cut_gradient - gradient).norm() <= 1e-10 * gradient.norm()


def test_chunks_are_computed_again_with_the_same_dropout():
    # A loss whose recomputed activations had other masks would not have the gradient of its own differences.
    model = objective(encoder(), 24).train()
    set_dropout(model, 0.3)
    batch = batch_of(model, list(range(NUM_QUERIES)))
    weight = model.encoder.base.encoder.layer[0].intermediate.dense.weight

    def loss(step: float) -> float:
        with torch.no_grad():
            weight[0, 0] += step
        torch.manual_seed(1)
        value = loss_and_gradient(model, batch)[0]
        found.append(float(weight.grad[0, 0]))
        with torch.no_grad():
            weight[0, 0] -= step
        return value

    found: list[float] = []
    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    loss(0.0)
    assert found[-1] == pytest.approx(slope, rel=1e-5)
    assert slope != 0


def test_loss_by_hand():
    # Similarities of query a: 1, 0, 0.6; of b: 0, 1, 0.8. Temperature 0.5 doubles them.
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    loss, correct = contrastive_loss(queries, candidates, torch.tensor([0, 2]), temperature=0.5)
    first = math.log(math.exp(2) + 1 + math.exp(1.2)) - 2
    second = math.log(1 + math.exp(2) + math.exp(1.6)) - 1.6
    assert float(loss) == pytest.approx(first + second, rel=1e-6)
    assert int(correct) == 1
    left_out = torch.tensor([[False, False, False], [False, True, False]])
    loss, correct = contrastive_loss(queries, candidates, torch.tensor([0, 2]), temperature=0.5, left_out_NM=left_out)
    assert float(loss) == pytest.approx(first + math.log(1 + math.exp(1.6)) - 1.6, rel=1e-6)
    assert int(correct) == 2


def test_one_process_has_all_rows():
    rows = torch.randn(3, 2, requires_grad=True)
    gathered, first = gather_rows(rows)
    assert gathered is rows
    assert first == 0


def test_similarities_are_float32_under_autocast():
    queries, candidates = F.normalize(torch.randn(4, 64), dim=1), F.normalize(torch.randn(9, 64), dim=1)
    targets = torch.arange(4)
    expected, _ = contrastive_loss(queries, candidates, targets, temperature=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = contrastive_loss(queries, candidates, targets, temperature=0.05)
    assert torch.equal(found, expected)
