from __future__ import annotations

import numpy as np
import pytest
import torch

from mlmx import keyed

MODULUS = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    """splitmix64's finaliser in Python's own integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % MODULUS
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % MODULUS
    return x ^ (x >> 31)


def signed(x: int) -> int:
    return x - MODULUS if x >= MODULUS // 2 else x


KEYS = np.array([0, 1, -1, 1234567, 2**63 - 1, -(2**63), 0x1234_5678_9ABC_DEF0], np.int64)
VALUES = np.array([0, -1, 7, 2**62, -(2**63), 3, 250_001], np.int64)


def test_the_reference_is_splitmix64():
    # First outputs for the seeds 1234567 (Rosetta Code) and 0 (Java's SplittableRandom).
    assert [mix((1234567 + n * GOLDEN) % MODULUS) for n in (1, 2, 3)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423
    ]  # fmt: skip
    assert mix(GOLDEN) == 0xE220A8397B1DCDAF


def test_folding_is_two_rounds_of_splitmix64():
    expected = [
        signed(mix(mix((key + GOLDEN) % MODULUS) ^ (value * GOLDEN % MODULUS)))
        for key, value in zip(KEYS.tolist(), VALUES.tolist(), strict=True)
    ]
    assert keyed.fold(KEYS, VALUES).tolist() == expected
    assert [int(keyed.fold(KEYS[i : i + 1], int(VALUES[i]))[0]) for i in range(len(KEYS))] == expected


def test_numpy_and_torch_draw_the_same():
    keys = keyed.fold(KEYS, VALUES)
    tensors = keyed.fold(torch.from_numpy(KEYS), torch.from_numpy(VALUES))
    assert tensors.tolist() == keys.tolist()
    assert keyed.fold(torch.from_numpy(KEYS), keyed.stream("mask")).tolist() == keyed.fold(KEYS, keyed.stream("mask")).tolist()
    assert keyed.uniform(tensors).tolist() == keyed.uniform(keys).tolist()
    assert keyed.uniform(tensors).dtype == torch.float64
    assert keyed.integers(tensors, 1000).tolist() == keyed.integers(keys, 1000).tolist()
    highs = np.arange(1, len(KEYS) + 1)
    assert keyed.integers(tensors, torch.from_numpy(highs)).tolist() == keyed.integers(keys, highs).tolist()


def test_a_fold_in_two_halves_is_a_fold_and_leaves_its_arguments_alone():
    keys, which = KEYS.copy(), np.array([3, 0, 3, 6])
    begun = keyed.begin_fold(keys)
    before = begun.copy()
    assert keyed.end_fold(begun[which], VALUES[:4]).tolist() == keyed.fold(keys[which], VALUES[:4]).tolist()
    # Keys of several streams at once, each as if alone.
    numbers = np.array([[keyed.stream("select")], [keyed.stream("corrupt")]])
    assert keyed.end_fold(begun, numbers).tolist() == [keyed.fold(keys, int(number)).tolist() for number in numbers[:, 0]]
    np.testing.assert_array_equal(keys, KEYS)
    np.testing.assert_array_equal(begun, before)


def draws(size: int = 100_000):
    return keyed.fold(np.full(size, 5, np.int64), np.arange(size))


def test_draws_are_uniform():
    values = keyed.uniform(draws())
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    # Chi-squared with 99 degrees of freedom: 99.99% lie below 161.
    assert ((counts - 1000) ** 2 / 1000).sum() < 161
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02


def test_integers_reach_every_value_and_no_other():
    values = keyed.integers(draws(), 7)
    counts = np.bincount(values)
    assert len(counts) == 7
    assert abs(counts / len(values) - 1 / 7).max() < 0.005


def test_streams_epochs_rows_and_seeds_are_independent():
    def row(seed, epoch, rows):
        return keyed.uniform(keyed.row_keys(seed=seed, epoch=epoch, row_ids=rows))

    rows = np.arange(20_000)
    base = row(0, 0, rows)
    for other in (row(1, 0, rows), row(0, 1, rows), row(0, 0, rows + 1)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03
    root = keyed.row_keys(seed=0, epoch=0, row_ids=rows)
    select, corrupt = (keyed.uniform(keyed.fold(root, keyed.stream(name))) for name in ("select", "corrupt"))
    assert abs(np.corrcoef(select, corrupt)[0, 1]) < 0.03


def test_a_row_has_its_key_whatever_stands_beside_it():
    rows = np.array([3, 5, 8])
    together = keyed.row_keys(seed=-4, epoch=np.array([0, 2, 1]), row_ids=rows)
    alone = [keyed.row_keys(seed=-4, epoch=e, row_ids=np.array([r]))[0] for r, e in zip(rows, (0, 2, 1), strict=True)]
    assert together.tolist() == alone


@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_a_permutation_holds_every_number_once(size):
    order = keyed.permutation(size, seed=1, name="plan")
    assert sorted(order.tolist()) == list(range(size))


def test_permutations_differ_by_seed_name_and_epoch_only():
    def order(**changes):
        return keyed.permutation(100, **{"seed": 1, "name": "plan", "epoch": 0, **changes}).tolist()

    assert order() == order()
    assert len({tuple(order(**changes)) for changes in ({}, {"seed": 2}, {"name": "other"}, {"epoch": 1})}) == 4
    # The first place is taken by each number about equally often.
    firsts = np.bincount([keyed.permutation(5, seed=seed, name="plan")[0] for seed in range(2000)])
    assert abs(firsts / 2000 - 0.2).max() < 0.04
