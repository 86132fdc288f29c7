from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_pairs import PARALLEL, TinyRows, batch_of, make_objective, node_of, rows_of, tiny_encoder, train

from mlmx.build import build, problems_of
from mlmx.errors import UserError


def part(name: str, weight: float = 1.0, schedule=None, **settings) -> dict:
    return {"objective": node_of(name, **settings), "weight": weight, "schedule": schedule}


def sum_of(encoder=None, **parts):
    return build({**node_of("sum"), "parts": parts}, encoder or tiny_encoder(), PARALLEL, where="objective")


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_part_alone_is_the_objective_itself(tmp_path):
    alone, _ = train(tmp_path / "alone", "mlm", max_steps=3)
    summed, _ = train(tmp_path / "sum", "sum", objective=sum_of(only=part("mlm")), max_steps=3)
    assert [line["loss"] for line in records(tmp_path / "sum")] == [line["loss"] for line in records(tmp_path / "alone")]
    assert [line["flops"] for line in records(tmp_path / "sum")] == [line["flops"] for line in records(tmp_path / "alone")]
    for a, b in zip(alone.encoder.parameters(), summed.encoder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_terms_are_those_of_the_parts():
    summed = sum_of(mlm=part("mlm"), rts=part("rts", replace_ratio=0.5))
    batch = batch_of(summed, range(12))
    # The first part has the masks that it has alone.
    alone = batch_of(make_objective("mlm"), range(12))
    assert torch.equal(batch.tensors["mlm/input_ids"], alone.tensors["input_ids"])
    output = summed(batch)
    assert output.terms["mlm/mlm"].item() == make_objective("mlm", summed.encoder)(alone).terms["mlm"].item()
    # The other's are independent of them, and of those that it has alone.
    chosen = batch.tensors["rts/chosen"]
    assert not torch.equal(chosen, batch_of(make_objective("rts", replace_ratio=0.5), range(12)).tensors["chosen"])
    assert batch.counts == {"mlm/mlm": alone.counts["mlm"], "rts/detection": len(chosen)}
    assert {"mlm/accuracy", "rts/replaced_ratio"} <= set(output.metrics)


def test_parts_select_tokens_independently_of_each_other():
    summed = sum_of(mlm=part("mlm", mask_ratio=0.5), rts=part("rts", replace_ratio=0.5))
    rows = rows_of(summed, 2000)
    batch = batch_of(summed, range(2000), rows=rows)
    ordinary = rows.take(np.arange(2000)).words >= 0
    selected = np.zeros(len(ordinary), bool)
    selected[batch.tensors["mlm/selected"]] = True
    both = (selected & batch.tensors["rts/chosen"].numpy())[ordinary].mean()
    assert abs(both - 0.25) < 4 * (0.25 * 0.75 / ordinary.sum()) ** 0.5


def test_the_loss_follows_weights_and_schedules(tmp_path):
    falling = {"_target_": "mlmx.schedules.Linear", "_version_": 1, "start": 1.0, "end": 0.0}
    train(tmp_path, "sum", objective=sum_of(mlm=part("mlm", 2.0, falling), rts=part("rts", 0.5)), max_steps=4)
    for step, line in enumerate(records(tmp_path)):
        expected = 2.0 * (1 - step / 4) * line["loss/mlm/mlm"] + 0.5 * line["loss/rts/detection"]
        assert line["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("names", [("mlm", "rts"), ("rts", "mlm"), ("electra", "mlm", "rts")])
def test_a_head_stays_as_it_is_where_a_part_needs_it(names):
    encoder = tiny_encoder()
    head = encoder.head
    summed = sum_of(encoder, **{name: part(name) for name in names})
    assert summed.encoder.head is head is not None
    assert sum_of(rts=part("rts")).encoder.head is None


def test_segments_and_pairs():
    summed = sum_of(tlm=part("tlm"), mlm=part("mlm", mask_ratio=1.0, corruption={"mask": 0.0, "random": 0.0, "keep": 1.0}))
    rows = rows_of(summed)
    assert rows.view == "pair"
    batch = batch_of(summed, [3, 5], rows=rows)
    segments = TinyRows(summed.encoder.vocabulary, "segment").take(np.array([6, 10, 7, 11]))
    assert torch.equal(batch.tensors["mlm/input_ids"], torch.from_numpy(segments.input_ids))
    assert torch.equal(batch.tensors["mlm/cu_seqlens"], torch.from_numpy(segments.cu_seqlens))
    assert len(batch.tensors["mlm/keys"].unique()) == 4
    assert batch.counts["mlm/mlm"] == int((segments.words >= 0).sum())
    assert torch.equal(batch.tensors["tlm/input_ids"], batch_of(make_objective("tlm"), [3, 5]).tensors["input_ids"])


def test_sides_of_pairs_keep_their_annotation():
    entities = [{"layer": "entity", "classes": ["PER", "LOC"], "cap_ratio": 1.0}]
    settings = {"types": entities, "mask_ratio": 0.01, "view": "segment", "count_specials": True}
    summed = sum_of(tlm=part("tlm"), lem=part("lem", **settings))
    batch = batch_of(summed, range(48))
    rows = TinyRows(summed.encoder.vocabulary, "segment").take(np.concatenate([np.arange(0, 96, 2), np.arange(1, 96, 2)]))
    has_entity = np.bincount(rows.row_of_token, weights=rows.tags["entity"] > 1) > 0
    # Each row has a budget of one token, which goes to an entity where there is one.
    assert batch.tensors["lem/in_entities"].numpy().tolist() == has_entity.tolist()


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"a": part("tlm"), "b": part("tlm", separator="own")}, "separator.*a: template; b: own"),
        ({"a": None}, "objective.parts: must have a part"),
        ({"a/b": part("mlm")}, "objective.parts.a/b: is no name"),
        ({"a": part("mlm", mask_ratio=1.5)}, "objective.parts.a.objective.mask_ratio: 1.5 is not valid"),
        ({"a": part("mlm", weight=-1.0)}, "objective.parts.a.weight: -1.0 is not valid"),
        ({"a": part("mlm") | {"objective": {"_target_": "mlmx.schedules.Constant", "value": 1.0}}}, "it is no Objective"),
        ({"a": part("mlm"), "b": part("lexinvariant")}, r"objective.parts.b.objective: draws the word embeddings"),
        ({"a": part("lem", parity="released_code", fill="none")}, "objective.parts.a.objective.parity: 'released_code' concerns"),
    ],
)
def test_what_cannot_be_added_is_told(parts, told):
    with pytest.raises(UserError, match=told):
        sum_of(**parts).collator()


def test_settings_of_parts_are_told_before_anything_is_built():
    node = {**node_of("sum"), "parts": {"a": part("mlm"), "2": part("mlm")}}
    assert [problem.where for problem in problems_of(node, "objective", "objective")] == ["objective.parts.2"]


def test_null_takes_a_part_out():
    summed = build({**node_of("sum"), "parts": {**node_of("sum")["parts"], "rts": None}}, tiny_encoder(), PARALLEL)
    assert summed.names == ("mlm",)
