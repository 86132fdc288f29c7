from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_pairs import MONOLINGUAL, TinyRows, batch_of, make_objective, rows_of, tiny_encoder, train

from mlmx.data.batch import BatchContext
from mlmx.data.rows import TokenRows
from mlmx.errors import UserError
from mlmx.keyed import row_keys
from mlmx.objectives.masked import positions_of_sides


@pytest.mark.parametrize(("separator", "num_specials"), [("template", 3), ("own", 4)])
def test_separators(separator, num_specials):
    # XLM: each side keeps its own opening and closing token, four per pair.
    objective = make_objective("tlm", separator=separator)
    rows = rows_of(objective).take(np.arange(5))
    assert np.bincount(rows.row_of_token[rows.special]).tolist() == [num_specials] * 5


def test_positions_restart_with_the_second_side():
    kept = make_objective("tlm", separator="own", position_reset=False)
    reset = make_objective("tlm", separator="own")
    rows = rows_of(reset).take(np.array([3]))
    side = np.flatnonzero(np.diff(rows.segments))[0] + 1
    positions = batch_of(reset, [3]).tensors["position_ids"].tolist()
    assert positions == [*range(side), *range(len(positions) - side)]
    assert rows.special[side]  # the second side begins with its own opening token
    assert batch_of(kept, [3]).tensors["position_ids"].tolist() == list(range(len(positions)))


def test_positions_worked_by_hand():
    rows = TokenRows(
        input_ids=np.zeros(9, np.int64),
        cu_seqlens=np.array([0, 5, 9], np.int32),
        words=np.zeros(9, np.int32),
        segments=np.array([0, 0, 1, 1, 1, 0, 0, 0, 1], np.int8),
        languages=np.zeros(9, np.int8),
        row_ids=np.arange(2),
    )
    assert positions_of_sides(rows).tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 0]


def test_both_sides_are_selected_at_the_same_rate():
    objective = make_objective("tlm")
    rows = TinyRows(objective.encoder.vocabulary, "pair", num_pairs=400)
    taken = rows.take(np.arange(400))
    selected = batch_of(objective, range(400), rows=rows).tensors["selected"].numpy()
    for side in (0, 1):
        ordinary = ~taken.special & (taken.segments == side)
        rate = ordinary[selected].sum() / ordinary.sum()
        assert abs(rate - 0.15) < 3 * np.sqrt(0.15 * 0.85 / ordinary.sum())


def test_monolingual_corpora_are_refused():
    with pytest.raises(UserError, match="not parallel"):
        make_objective("tlm", corpus=MONOLINGUAL)


def shuffled_targets(rows: TinyRows) -> TinyRows:
    """The same rows, each first side beside another pair's second side."""
    other = TinyRows.__new__(TinyRows)
    other.__dict__.update(rows.__dict__)
    order = np.arange(len(rows.sizes))
    order[1::2] = np.roll(order[1::2], 2)
    other.starts, other.sizes = rows.starts[order], rows.sizes[order]
    other.first_words = np.array(rows.first_words)[order].tolist()
    return other


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tlm", "mlm"])
def test_only_tlm_misses_the_right_translation(name, tmp_path):
    settings = {"mask_ratio": 0.3, "corruption": {"mask": 1.0, "random": 0.0, "keep": 0.0}}
    objective = make_objective(name, tiny_encoder(hidden_size=64), **settings)
    train(tmp_path, name, objective=objective, max_steps=1000, learning_rate=3e-3, batch_examples=16)
    objective.eval()
    indices = np.arange(48) if name == "tlm" else np.arange(96)
    rows = rows_of(objective)
    losses = []
    for view in (rows, shuffled_targets(rows)):
        context = BatchContext(keys=row_keys(seed=9, epoch=0, row_ids=indices))
        batch = objective.collator()(view.take(indices), context)
        with torch.no_grad():
            losses.append(objective(batch).terms["mlm"].item() / batch.counts["mlm"])
    if name == "tlm":
        assert losses[1] > 1.3 * losses[0]
    else:
        assert losses[1] == pytest.approx(losses[0], rel=0.1)
