from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_pairs import PARALLEL, batch_of, make_objective, node_of, rows_of, tiny_encoder, train

from mlmx import keyed
from mlmx.build import build
from mlmx.data.batch import BatchContext
from mlmx.errors import UserError


def alternate(encoder=None, **ratios: float):
    parts = {name: {"objective": node_of(name), "ratio": ratio} for name, ratio in ratios.items()}
    return build({**node_of("alternate"), "parts": parts}, encoder or tiny_encoder(), PARALLEL, where="objective")


def drawn(collator, num_steps: int, seed: int = 0) -> list[str]:
    contexts = [BatchContext(keys=np.zeros(0, np.int64), seed=seed, step=step) for step in range(num_steps)]
    return [name for context in contexts for name in collator.active(context)]


def test_one_part_a_step_as_often_as_its_ratio_says():
    collator = alternate(mlm=3.0, tlm=1.0).collator()
    turns = drawn(collator, 4000)
    assert len(turns) == 4000
    assert abs(turns.count("mlm") / 4000 - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert turns == drawn(collator, 4000)
    assert turns != drawn(collator, 4000, seed=1)
    # Whose turn it was does not tell whose it will be.
    after_tlm = [after for before, after in pairwise(turns) if before == "tlm"]
    assert abs(after_tlm.count("mlm") / len(after_tlm) - 0.75) < 4 * (0.75 * 0.25 / len(after_tlm)) ** 0.5


def test_a_step_is_the_one_that_the_part_alone_would_take():
    objective = alternate(rts=1.0, mlm=1.0)
    turns = drawn(objective.collator(), 8)
    for name in ("rts", "mlm"):
        batch, alone = batch_of(objective, range(8), step=turns.index(name)), batch_of(make_objective(name), range(8))
        assert torch.equal(batch.tensors[f"{name}/input_ids"], alone.tensors["input_ids"])
        assert batch.counts == {f"{name}/{term}": count for term, count in alone.counts.items()}
        assert objective.weights_of(batch) == {f"{name}/{term}": 1.0 for term in alone.counts}
        # What only the other part has is left alone by the optimiser.
        objective.zero_grad()
        sum(objective(batch).terms.values()).backward()
        assert (objective.part_rts.head.logit.weight.grad is None) == (name == "mlm")


def test_the_log_has_the_terms_of_the_part_whose_turn_it_was(tmp_path):
    objective = alternate(rts=1.0, mlm=1.0)
    turns = drawn(objective.collator(), 6)
    assert set(turns) == {"rts", "mlm"}
    train(tmp_path, "alternate", objective=objective, max_steps=6)
    for name, line in zip(turns, map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()), strict=True):
        losses = [key for key in line if key.startswith("loss/")]
        assert losses == ["loss/rts/detection" if name == "rts" else "loss/mlm/mlm"]
        assert line[losses[0]] == pytest.approx(line["loss"])


def test_what_is_held_out_is_judged_by_all_parts(tmp_path):
    _, result = train(tmp_path, "alternate", objective=alternate(rts=3.0, mlm=1.0), max_steps=2, validation_rows=10)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    expected = 0.75 * line["validation/loss/rts/detection"] + 0.25 * line["validation/loss/mlm/mlm"]
    assert result["validation_loss"] == pytest.approx(expected, rel=1e-6)


def test_both_views_come_from_the_same_pairs():
    objective = make_objective("alternate")
    rows = rows_of(objective)
    taken = rows.take(np.arange(4))
    turns = drawn(objective.collator(), 8)
    tlm, mlm = (batch_of(objective, range(4), rows=rows, step=turns.index(name)) for name in ("tlm", "mlm"))
    assert len(tlm.tensors["tlm/cu_seqlens"]) == 5
    assert len(mlm.tensors["mlm/cu_seqlens"]) == 9
    # A special token more for each pair that became two rows.
    assert len(mlm.tensors["mlm/input_ids"]) == len(taken.input_ids) + 4
    assert mlm.num_tokens == tlm.num_tokens == len(taken.input_ids)


def test_keys_do_not_depend_on_the_rank_or_the_rows():
    collator = make_objective("alternate").collator()
    keys = keyed.row_keys(seed=0, epoch=3, row_ids=np.arange(5))
    assert collator.active(BatchContext(keys=keys, step=7)) == collator.active(BatchContext(keys=keys[:2], step=7))


def test_two_of_them_in_a_sum_take_turns_independently_of_each_other():
    parts = {name: {"objective": node_of("alternate"), "weight": 1.0} for name in ("x", "y")}
    objective = build(node_of("sum", parts=parts), tiny_encoder(), PARALLEL, where="objective")
    collator, rows = objective.collator(), rows_of(objective).take(np.arange(2))
    turns = set()
    for step in range(30):
        counts = collator(rows, BatchContext(keys=np.arange(2), step=step)).counts
        turns.add(tuple(sorted({"/".join(term.split("/")[:2]) for term in counts})))
    assert len(turns) == 4


def test_no_part_is_refused():
    with pytest.raises(UserError, match=r"objective.parts: must have a part"):
        alternate()
