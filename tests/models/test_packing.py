from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmx.models.attention import Runs
from mlmx.models.packing import filled_up, sorted_by_length
from tests.models.test_encoder import batch_of

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=12)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 64))
def test_filling_adds_rows_after_the_real_ones(lengths, multiple) -> None:
    batch = batch_of(lengths)
    filled = filled_up(batch, multiple, pad_id=0)
    tokens, rows = sum(lengths), len(lengths)
    assert filled.num_tokens % multiple == 0
    assert tokens <= filled.num_tokens < tokens + multiple
    for name in ("input_ids", "position_ids"):
        assert torch.equal(filled.tensors[name][:tokens], batch.tensors[name])
    cu_seqlens = filled.tensors["cu_seqlens"]
    assert cu_seqlens.dtype == torch.int32
    assert torch.equal(cu_seqlens[: rows + 1], batch.tensors["cu_seqlens"])
    assert cu_seqlens[-1] == filled.num_tokens
    sizes = cu_seqlens.diff().tolist()
    assert min(sizes) >= 0
    assert len(sizes).bit_count() == filled.max_seqlen.bit_count() == 1
    assert max(sizes) <= batch.max_seqlen <= filled.max_seqlen
    assert (filled.tensors["input_ids"][tokens:] == 0).all()
    positions = [position for size in sizes for position in range(size)]
    assert filled.tensors["position_ids"].tolist() == positions


@settings(deadline=None)
@given(LENGTHS)
def test_sorting_keeps_rows_whole(lengths) -> None:
    batch = batch_of(lengths)
    order, cu_seqlens = sorted_by_length(batch.tensors["cu_seqlens"], batch.num_tokens)
    assert cu_seqlens.diff().tolist() == sorted(lengths)
    assert (order is None) == (lengths == sorted(lengths))
    if order is not None:
        starts = np.cumsum([0, *lengths])
        rows = sorted(range(len(lengths)), key=lengths.__getitem__)
        assert order.tolist() == [int(starts[row]) + i for row in rows for i in range(lengths[row])]


def test_runs_by_hand() -> None:
    assert Runs(torch.tensor([0, 0, 2, 4, 7, 7, 7])).sizes == [(2, 2), (3, 1)]
