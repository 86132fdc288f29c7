"""2D Matryoshka and Starbucks: which parts of an encoder are trained, against a computation by another library's means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from tiny_pairs import batch_of, make_objective, rows_of, tiny_encoder

from mlmx.data.batch import BatchContext
from mlmx.errors import UserError
from mlmx.models.pooling import pool
from mlmx.objectives.submodels import divergence, submodels_of


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pooled(objective, batch) -> np.ndarray:
    """(layers, views, examples, width) of a batch."""
    states = objective.encoder.hidden_states(batch)
    vectors = [pool(state, batch.tensors["cu_seqlens"], objective.pooling).detach().numpy() for state in states]
    return np.stack(vectors).reshape(len(states), 2, -1, objective.encoder.hidden_size)


def scores(vectors: np.ndarray, width: int, *, cosine: bool) -> np.ndarray:
    first, second = vectors[..., :width]
    if cosine:
        first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    return first @ second.T


def choice(logits: np.ndarray) -> float:
    return -np.diag(log_softmax(logits, axis=1)).sum()


def kl(teacher: np.ndarray, student: np.ndarray) -> float:
    return rel_entr(softmax(teacher, axis=-1), softmax(student, axis=-1)).sum()


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_matryoshka2d_by_another_library(similarity):
    objective = make_objective("matryoshka2d", similarity=similarity, temperature=0.3, pooling="mean").double()
    batch = batch_of(objective, range(5))
    layer, width = batch.tensors["part"].tolist()
    vectors = pooled(objective, batch)
    of = {"full": (2, 32), "layer": (layer, 32), "width": (2, width), "both": (layer, width)}
    expected = {term: choice(scores(vectors[n], d, cosine=similarity == "cosine") / 0.3) for term, (n, d) in of.items()}
    expected["kl"] = kl(vectors[2], vectors[layer])
    found = objective(batch).terms
    assert {term: float(value.detach()) for term, value in found.items()} == pytest.approx(expected, rel=1e-9)
    assert batch.counts == {"full": 5, "layer": 5, "width": 5, "both": 5, "kl": 10}


def test_the_part_is_one_of_all_but_the_whole_and_the_embeddings():
    objective = make_objective("matryoshka2d", tiny_encoder(hidden_size=32), width_step=8)
    collator, rows = objective.collator(), rows_of(objective).take(np.arange(2))

    def part(**context) -> tuple[int, ...]:
        return tuple(collator(rows, BatchContext(keys=np.arange(2), **context)).tensors["part"].tolist())

    parts = {part(step=step) for step in range(60)}
    assert parts == {(1, 8), (1, 16), (1, 24)}
    assert part(step=3) == part(step=3)
    assert [part(step=step) for step in range(20)] != [part(step=step, seed=1) for step in range(20)]


def test_layers_are_drawn_below_the_last_and_the_middle_is_judged():
    objective = make_objective("matryoshka2d", tiny_encoder(num_layers=4), width_step=8)
    collator, rows = objective.collator(), rows_of(objective).take(np.arange(2))

    def part(**context) -> tuple[int, ...]:
        return tuple(collator(rows, BatchContext(keys=np.arange(2), **context)).tensors["part"].tolist())

    assert {part(step=step) for step in range(100)} == {(layer, width) for layer in (1, 2, 3) for width in (8, 16, 24)}
    assert {part(step=step, seed=seed, held_out=True) for step in range(3) for seed in range(3)} == {(2, 16)}


@pytest.mark.parametrize("kl_on", ["scores", "coordinates"])
def test_starbucks_by_another_library(kl_on):
    objective = make_objective("starbucks_srl", pairs=((1, 8), (2, 16)), kl_on=kl_on, temperature=0.3).double()
    batch = batch_of(objective, range(5))
    vectors = pooled(objective, batch)
    logits = {
        name: scores(vectors[n], d, cosine=True) / 0.3
        for name, n, d in (("full", 2, 32), ("layer1_width8", 1, 8), ("layer2_width16", 2, 16))
    }
    expected = {name: choice(value) for name, value in logits.items()}
    if kl_on == "scores":
        expected["kl"] = kl(logits["full"], logits["layer1_width8"]) + kl(logits["full"], logits["layer2_width16"])
    else:
        expected["kl"] = kl(vectors[2][..., :8], vectors[1][..., :8])  # of the last layer's own coordinates there is none
    assert {term: float(value.detach()) for term, value in objective(batch).terms.items()} == pytest.approx(expected, rel=1e-9)
    assert batch.counts["kl"] == (5 if kl_on == "scores" else 10)


@pytest.mark.parametrize(("name", "kl_on"), [("matryoshka2d", None), ("starbucks_srl", "scores"), ("starbucks_srl", "coordinates")])
@pytest.mark.parametrize("detach", [True, False])
def test_the_teacher_learns_only_where_it_is_not_detached(name, kl_on, detach):
    settings = {"kl_on": kl_on} if kl_on else {}
    objective = make_objective(name, detach_teacher=detach, **settings)
    objective(batch_of(objective, range(5))).terms["kl"].backward()
    first, last = (layer.output.dense.weight.grad for layer in objective.encoder.layers)
    assert first.any()
    assert (last is not None and bool(last.any())) == (not detach)


def test_nothing_diverges_from_itself():
    logits = torch.randn(4, 7)
    assert float(divergence(logits, logits + 3.0, detach=True)) == pytest.approx(0, abs=1e-5)
    assert float(divergence(logits, -logits, detach=True)) > 1


@pytest.mark.parametrize("pairs", [((3, 8),), ((1, 33),), ((0, 8),), ((2, 32),), (), ((1, 8), (1, 8))])
def test_parts_that_an_encoder_does_not_have_are_refused(pairs):
    with pytest.raises(UserError, match=r"objective\.pairs"):
        make_objective("starbucks_srl", pairs=pairs)


def test_parts_that_nobody_names_have_half_the_width_of_the_layer_above():
    encoder = tiny_encoder(hidden_size=32)
    assert submodels_of(encoder, None) == [(1, 16)]
    encoder.num_layers = 6
    assert submodels_of(encoder, None) == [(4, 8), (5, 16)]
    encoder.num_layers = 1
    with pytest.raises(UserError, match=r"objective\.pairs: \[\]: name some parts"):
        submodels_of(encoder, None)


@pytest.mark.parametrize("name", ["matryoshka2d", "starbucks_srl"])
def test_an_encoder_with_a_norm_after_its_last_layer_is_refused(name):
    with pytest.raises(UserError, match="norm after its last layer"):
        make_objective(name, tiny_encoder(architecture="modernbert"))


def test_an_encoder_without_smaller_parts_is_refused():
    with pytest.raises(UserError, match=r"objective\.width_step: 32 leaves no width"):
        make_objective("matryoshka2d", width_step=32)
