"""SimCSE: what is compared with what, and what goes wrong without a word."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_pairs import MONOLINGUAL, PARALLEL, TinyRows, batch_of, make_objective, node_of, rows_of, tiny_encoder

from mlmx.data.batch import BatchContext
from mlmx.data.vocabulary import RowLayout
from mlmx.errors import UserError
from mlmx.models.dropout import set_dropout
from mlmx.objectives.views import TERM


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rows_in(batch) -> list[list[int]]:
    edges = batch.tensors["cu_seqlens"].tolist()
    return [batch.tensors["input_ids"][start:end].tolist() for start, end in pairwise(edges)]


def test_both_views_are_the_row_itself():
    objective = make_objective("simcse")
    batch = batch_of(objective, range(5))
    rows = rows_in(batch)
    assert rows[:5] == rows[5:]
    assert batch.counts == {TERM: 5}
    # What is drawn for a view is drawn for no other.
    assert len(set(batch.keys.tolist())) == 10


@pytest.mark.parametrize("middle", [(3,), (3, 3)])
def test_the_views_of_a_pair_are_its_sides_as_rows_of_their_own(middle):
    encoder = tiny_encoder()
    # XLM-R's template has two separators between the sides.
    encoder.vocabulary = replace(encoder.vocabulary, pair=RowLayout((2,), (3,), middle, 1))
    objective = make_objective("simcse_supervised", encoder)
    batch = batch_of(objective, range(6))
    segments = TinyRows(encoder.vocabulary, "segment").take(np.arange(12))
    edges = segments.cu_seqlens.tolist()
    expected = [segments.input_ids[start:end].tolist() for start, end in pairwise(edges)]
    assert rows_in(batch) == expected[0::2] + expected[1::2]
    arranged = objective.collator().arranged(rows_of(objective).take(np.arange(6)), BatchContext(keys=np.arange(6)))
    assert set(arranged.segments[: arranged.cu_seqlens[6]]) == {0}
    assert set(arranged.languages[arranged.cu_seqlens[6] :]) == {-1, 1}


def test_pairs_are_not_made_of_a_monolingual_corpus():
    with pytest.raises(UserError, match="not parallel"):
        make_objective("simcse_supervised", corpus=MONOLINGUAL)


def test_the_loss_of_equal_vectors_is_the_logarithm_of_the_batch():
    objective = make_objective("simcse")
    with torch.no_grad():
        objective.head[0].weight.zero_()
        objective.head[0].bias.fill_(0.5)
    loss = objective(batch_of(objective, range(7))).terms[TERM].detach()
    assert float(loss) / 7 == pytest.approx(math.log(7), rel=1e-5)


TRIPLETS = replace(PARALLEL, num_sides=3)


def triplet_rows(objective) -> TinyRows:
    return TinyRows(objective.encoder.vocabulary, "pair", num_sides=3)


@pytest.mark.parametrize(("corpus", "num_sides"), [(PARALLEL, 2), (TRIPLETS, 3)])
def test_the_loss_from_rows_that_are_encoded_one_by_one(corpus, num_sides):
    objective = make_objective("simcse_supervised", corpus=corpus, head="none", temperature=0.3).double()
    batch = batch_of(objective, range(4), rows=TinyRows(objective.encoder.vocabulary, "pair", num_sides=num_sides))
    rows = TinyRows(objective.encoder.vocabulary, "segment")
    single = make_objective("simcse", objective.encoder, head="none").collator()
    vectors = []
    for number in range(4 * num_sides):
        row = single(rows.take(np.array([number])), BatchContext(keys=np.zeros(1, np.int64)))
        vectors.append(objective.encoder(row)[0].detach().numpy())  # of its first token
    first, *others = (np.stack(vectors[side::num_sides]) for side in range(num_sides))
    candidates = np.concatenate(others)  # the third side of a triplet is a negative to all
    norms = np.outer(np.linalg.norm(first, axis=1), np.linalg.norm(candidates, axis=1))
    cosines = first @ candidates.T / norms / 0.3
    expected = np.log(np.exp(cosines).sum(axis=1)) - np.diag(cosines)
    output = objective(batch)
    assert batch.counts == {TERM: 4}
    assert batch.num_rows == 4 * num_sides
    assert float(output.terms[TERM].detach()) == pytest.approx(expected.sum(), rel=1e-9)
    assert int(output.metrics["accuracy"][0]) == (cosines.argmax(axis=1) == np.arange(4)).sum()


@pytest.mark.parametrize("name", ["simcse_supervised", "starbucks_srl", "matryoshka2d"])
def test_the_loss_of_equal_vectors_with_a_hard_negative_each(name):
    objective = make_objective(name, corpus=TRIPLETS, positives="pair")
    batch = batch_of(objective, range(5), rows=triplet_rows(objective))
    for parameter in objective.encoder.parameters():
        parameter.data.zero_()
    # No vector has a direction then, and all similarities are 0.
    loss = next(iter(objective(batch).terms.values())).detach()
    assert float(loss) / 5 == pytest.approx(math.log(10), rel=1e-5)


def test_what_reads_sentences_beside_reads_all_three_sides():
    parts = {
        "contrast": {"weight": 1.0, "objective": node_of("simcse_supervised")},
        "mlm": {"weight": 1.0, "objective": node_of("mlm")},
    }
    objective = make_objective("sum", corpus=TRIPLETS, parts=parts)
    batch = batch_of(objective, range(6), rows=triplet_rows(objective))
    lengths = batch.tensors["mlm/cu_seqlens"].diff().tolist()
    assert lengths == batch.tensors["contrast/cu_seqlens"].diff().tolist()
    assert len(lengths) == 18
    objective(batch)


def test_dropout_tells_the_views_apart():
    objective = make_objective("simcse", equal_views="refuse", head="none").train()
    batch = batch_of(objective, range(4))
    with pytest.raises(UserError, match=r"trainer\.dropout: is 0"):
        objective(batch)
    set_dropout(objective, 0.1)
    torch.manual_seed(5)
    once = objective(batch).terms[TERM]
    states = objective.encoder(batch)
    first, second = states.split(batch.num_tokens // 2)
    assert not torch.isclose(first, second).any(dim=1).all()
    torch.manual_seed(5)
    assert torch.equal(objective(batch).terms[TERM], once)
    objective.eval()
    objective(batch)  # which is how held-out rows are judged


def test_a_batch_that_does_not_count_has_no_loss(monkeypatch):
    objective = make_objective("simcse")
    monkeypatch.setattr(
        "mlmx.objectives.contrast.gather_rows", lambda rows: (torch.cat([rows, torch.randn(3, *rows.shape[1:])]), 0)
    )
    loss = objective(replace(batch_of(objective, range(3)), counted=False)).terms[TERM]
    loss.backward()
    assert float(loss.detach()) == 0
    assert not any(p.grad is not None and p.grad.any() for p in objective.parameters())


@pytest.mark.parametrize("name", ["simcse", "simcse_supervised", "mirror"])
def test_memory_bounds_no_batch(name):
    whole, cut = (make_objective(name, chunk_tokens=chunk).double() for chunk in (None, 30))
    batch = batch_of(whole, range(8))
    gradients, lengths = [], []
    cut.encoder.register_forward_hook(lambda _, given, __: lengths.append(given[0].num_tokens))
    for objective in (whole, cut):
        objective(batch).terms[TERM].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]))
    assert (gradients[1] - gradients[0]).norm() <= 1e-10 * gradients[0].norm()
    # Forward and again in the backward pass, some rows at a time.
    assert len(lengths) == 2 * -(-batch.num_tokens // 30)
    assert sum(lengths) == 2 * batch.num_tokens
    assert max(lengths) < 30 + int(batch.tensors["cu_seqlens"].diff().max())


def test_the_head_sees_both_views_and_is_left_behind(tmp_path):
    objective = make_objective("simcse")
    batch = batch_of(objective, range(4))
    assert objective.flops(batch) - objective.encoder.flops(batch) == 6 * 32 * 32 * 8
    objective.export(tmp_path)
    assert not [name for name in objective.encoder.state_dict() if name.startswith("head")]
