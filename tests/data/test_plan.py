from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmx.data.plan import BatchPlan, packing_efficiency, partition
from mlmx.errors import UserError

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=120).map(lambda values: np.array(values, np.int32))


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 3), st.integers(1, 200), st.integers(1, 3))
def test_each_epoch_has_every_row_once_and_no_batch_is_too_big(lengths, seed, batch_tokens, epochs) -> None:
    plan = BatchPlan(lengths, seed=seed, batch_tokens=batch_tokens, epochs=epochs)
    seen = Counter()
    for step in range(plan.num_steps):
        rows, visits = plan.rows_of(step)
        assert len(rows) >= 1
        assert len(rows) == 1 or lengths[rows].sum() <= batch_tokens
        assert (visits == plan.epoch_of(step)).all()
        seen.update(zip(visits.tolist(), rows.tolist(), strict=True))
    assert seen == Counter({(epoch, row): 1 for epoch in range(epochs) for row in range(len(lengths))})


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 200), st.integers(0, 60))
def test_a_step_can_be_asked_for_alone(lengths, batch_tokens, step) -> None:
    from_start = BatchPlan(lengths, seed=1, batch_tokens=batch_tokens, max_steps=100)
    for earlier in range(step):
        from_start.rows_of(earlier)
    resumed = BatchPlan(lengths, seed=1, batch_tokens=batch_tokens, max_steps=100)
    for one, other in zip(from_start.rows_of(step), resumed.rows_of(step), strict=True):
        np.testing.assert_array_equal(one, other)
    # Backwards as well: the plan keeps one epoch, not its way there.
    np.testing.assert_array_equal(from_start.rows_of(0)[0], resumed.rows_of(0)[0])


def test_no_batch_vanishes_at_the_end_of_an_epoch() -> None:
    plan = BatchPlan(np.full(101, 10), seed=0, batch_tokens=100, epochs=1)
    assert [len(plan.rows_of(step)[0]) for step in range(plan.num_steps)] == [10] * 9 + [6, 5]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    lengths = np.full(50, 3)
    plan = BatchPlan(lengths, seed=0, batch_examples=50, epochs=2)
    other = BatchPlan(lengths, seed=1, batch_examples=50, epochs=2)
    orders = {tuple(p.rows_of(step)[0].tolist()) for p in (plan, other) for step in (0, 1)}
    assert len(orders) == 4


def test_batches_by_examples() -> None:
    plan = BatchPlan(np.arange(1, 24), seed=0, batch_examples=5, max_steps=7)
    assert [len(plan.rows_of(step)[0]) for step in range(7)] == [5, 5, 5, 5, 3, 5, 5]
    assert plan.num_steps == 7
    assert BatchPlan(np.arange(1, 24), seed=0, batch_examples=5, epochs=1).num_steps == 5
    assert plan.steps_per_epoch == 5
    assert BatchPlan(np.ones(3), seed=0, batch_examples=5, max_steps=0).num_steps == 0


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 2.0]), min_size=1, max_size=40), st.integers(0, 2))
def test_weights_are_met_over_epochs_and_repeats_count_as_seen_before(weights, seed) -> None:
    if not sum(weights):
        weights[0] = 1.0
    plan = BatchPlan(np.full(len(weights), 5), seed=seed, batch_tokens=20, weights=np.array(weights), epochs=4)
    seen: dict[int, list[int]] = {row: [] for row in range(len(weights))}
    for step in range(plan.num_steps):
        for row, visit in zip(*map(np.ndarray.tolist, plan.rows_of(step)), strict=True):
            seen[row].append(visit)
    for row, weight in enumerate(weights):
        assert sorted(seen[row]) == list(range(int(4 * weight)))


def test_fractional_weights_are_met_within_an_epoch_too() -> None:
    plan = BatchPlan(np.full(1000, 5), seed=3, batch_tokens=1000, weights=np.full(1000, 0.5), epochs=2)
    first = [row for step in range(plan.steps_per_epoch) for row in plan.rows_of(step)[0].tolist()]
    assert len(first) == len(set(first)) == 500


def test_data_without_rows_is_the_users_error() -> None:
    with pytest.raises(UserError, match="weights of the mixture are 0"):
        BatchPlan(np.ones(3), seed=0, batch_tokens=5, epochs=1, weights=np.zeros(3))
    with pytest.raises(UserError, match="no rows"):
        BatchPlan(np.zeros(0), seed=0, batch_tokens=5, epochs=1)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 5), st.one_of(st.none(), st.integers(1, 100)))
def test_partition_deals_out_every_row_once_in_equally_many_micro_batches(lengths, num_parts, capacity) -> None:
    parts = partition(lengths, num_parts, capacity)
    assert len(parts) == num_parts
    assert len({len(part) for part in parts}) == 1
    dealt = np.concatenate([rows for part in parts for rows in part])
    assert sorted(dealt.tolist()) == list(range(len(lengths)))
    for rows in (rows for part in parts for rows in part):
        assert capacity is None or len(rows) <= 1 or lengths[rows].sum() <= capacity
        assert (np.diff(rows) > 0).all()
    again = partition(lengths.tolist(), num_parts, capacity)
    for part, other in zip(parts, again, strict=True):
        for rows, same in zip(part, other, strict=True):
            np.testing.assert_array_equal(rows, same)


def test_partition_balances() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 200)
    parts = partition(lengths, 4, 512)
    totals = [sum(lengths[rows].sum() for rows in part) for part in parts]
    assert max(totals) - min(totals) < 60
    assert len(parts[0]) <= -(-lengths.sum() // 512) // 4 + 1
    assert [len(rows) for (rows,) in partition([7], 3)] == [1, 0, 0]


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 4), st.integers(10, 100))
def test_no_more_micro_batches_than_best_fit_decreasing_needs(lengths, num_parts, capacity) -> None:
    # Best fit, written the slow way: of the bins with room, the one with the least.
    rooms: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [number for number, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=rooms.__getitem__)] -= length
        else:
            rooms.append(max(capacity - length, 0))
    parts = partition(lengths, num_parts, capacity)
    assert len(parts[0]) <= -(-len(rooms) // num_parts)


def test_a_packing_that_only_best_fit_finds() -> None:
    # The emptiest bin first: 5 and 4, then 4+3, 5+3, and no room for the last 3. Best fit: 5+4 and 3+3+3.
    lengths = [5, 4, 3, 3, 3]
    (bins,) = partition(lengths, 1, 9)
    assert [sum(lengths[row] for row in rows) for rows in bins] == [9, 9]


@pytest.mark.parametrize(("micro_batch_tokens", "num_micro_batches", "num_parts"), [(1024, 8, 1), (4096, 8, 4), (8192, 4, 2)])
def test_packing_is_efficient_on_lines_of_text(micro_batch_tokens, num_micro_batches, num_parts) -> None:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(26) - 0.18, 0.6, 40_000).round(), 4, 128).astype(int)
    plan = BatchPlan(lengths, seed=0, batch_tokens=micro_batch_tokens * num_micro_batches, epochs=1)
    # The last two batches of an epoch are not full.
    rows = [plan.rows_of(step)[0] for step in range(plan.num_steps - 2)]
    num_tokens = sum(int(lengths[batch].sum()) for batch in rows)
    parts = [partition(lengths[batch], num_parts, micro_batch_tokens) for batch in rows]
    num_packed = sum(len(part) for of_batch in parts for part in of_batch)
    assert packing_efficiency(num_tokens, num_packed, micro_batch_tokens) >= 0.98


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60), st.integers(1, 3000), st.sampled_from([None, 500])
)
def test_a_budget_of_tokens_ends_with_the_batch_that_reaches_it(lengths, batch_tokens, max_tokens, warmup) -> None:
    lengths = np.array(lengths)
    warming = {"batch_warmup_tokens": warmup, "batch_warmup_start_ratio": 0.25 if warmup else None}
    plan = BatchPlan(lengths, seed=3, batch_tokens=batch_tokens, max_tokens=max_tokens, **warming)
    sizes = [int(lengths[plan.rows_of(step)[0]].sum()) for step in range(plan.num_steps)]
    assert sum(sizes) >= max_tokens > sum(sizes[:-1])


def test_without_an_end_the_plan_goes_on() -> None:
    plan = BatchPlan(np.ones(10), seed=0, batch_examples=5)
    assert plan.num_steps is None
    assert plan.epoch_of(99) == 49


@settings(deadline=None)
@given(st.integers(0, 5), st.sampled_from(["batch_tokens", "batch_examples"]))
def test_batches_grow_linearly_and_then_stay(seed, unit) -> None:
    lengths = np.full(997, 10)
    full = 400 if unit == "batch_tokens" else 40
    settings = {unit: full, "batch_warmup_tokens": 4000, "batch_warmup_start_ratio": 0.1}
    plan = BatchPlan(lengths, seed=seed, max_steps=60, **settings)
    before = 0
    for step in range(36):
        rows = len(plan.rows_of(step)[0])
        assert rows == pytest.approx(40 * (0.1 + 0.9 * min(1, before / 4000)), abs=1)
        before += 10 * rows
    assert rows == 40
    # Each epoch still has every row once, and a step can be asked for alone.
    first = np.concatenate([plan.rows_of(step)[0] for step in range(plan.steps_per_epoch)])
    assert sorted(first.tolist()) == list(range(997))
    resumed = BatchPlan(lengths, seed=seed, max_steps=60, **settings)
    assert resumed.rows_of(31)[0].tolist() == plan.rows_of(31)[0].tolist()
