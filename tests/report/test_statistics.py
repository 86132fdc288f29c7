from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mlmx.report.statistics import Statistic, paired_interval, paired_seed_interval, seed_interval


def means(values: np.ndarray) -> Statistic:
    """The statistic of a mean over examples; values are (seeds, examples)."""
    return Statistic(np.stack([values, np.ones_like(values)], axis=1), lambda sums: sums[..., 0, :] / sums[..., 1, :])


def test_seed_interval_is_students():
    values = [0.3, 0.5, 0.45, 0.6]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    interval = seed_interval(values)
    assert (interval.low, interval.high) == pytest.approx(expected)
    # By hand: 1, 2, 3 have mean 2, standard error 1 / sqrt 3, and t of 2 degrees is 4.3027.
    assert seed_interval([1, 2, 3]).high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)
    assert seed_interval([1, 2]) is None


def test_interval_over_examples_is_scipys_paired_bootstrap():
    rng = np.random.default_rng(0)
    system, baseline = rng.normal(0.3, 1, (1, 300)), rng.normal(0, 1, (1, 300))
    ours = paired_interval(means(system), means(baseline))
    theirs = stats.bootstrap(
        (system[0], baseline[0]),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_what_both_sides_share_cancels():
    # Examples differ hugely in difficulty, in the same way for both: only pairing sees the difference.
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 10, 200)
    baseline = difficulty + rng.normal(0, 0.1, (3, 200))
    interval = paired_interval(means(baseline + 0.1), means(baseline))
    assert (interval.low, interval.high) == pytest.approx((0.1, 0.1))


def test_a_ratio_is_resampled_as_a_ratio():
    rng = np.random.default_rng(0)
    whole = rng.integers(1, 5, 400).astype(float)
    part = rng.binomial(whole.astype(int), 0.6).astype(float)
    zero = Statistic(np.stack([np.zeros(400), whole])[None], lambda sums: sums[..., 0, :] / sums[..., 1, :])
    one = Statistic(np.stack([part, whole])[None], zero.score)
    interval = paired_interval(one, zero)
    theirs = stats.bootstrap(
        (part, whole), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, vectorized=True, rng=np.random.default_rng(1)
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_coverage_over_seeds(num_seeds):
    # 95% intervals hold the true difference in about 95% of repeated experiments, also where seeds are few.
    rng = np.random.default_rng(num_seeds)
    held = [
        interval.low <= 0.5 <= interval.high
        for interval in (paired_seed_interval(rng.normal(0.5, 1, num_seeds).tolist()) for _ in range(400))
    ]
    assert 0.91 <= np.mean(held) <= 0.985


@pytest.mark.parametrize("num_seeds", [1, 5])
def test_coverage_over_seeds_and_examples(num_seeds):
    rng = np.random.default_rng(num_seeds)
    held = []
    for _ in range(150):
        example_effect = rng.normal(0, 1, 60)
        seed_effect = rng.normal(0, 0.1, (num_seeds, 1)) if num_seeds > 1 else 0
        system = 0.2 + example_effect + seed_effect + rng.normal(0, 0.3, (num_seeds, 60))
        interval = paired_interval(means(system), means(np.zeros((num_seeds, 60))))
        held.append(interval.low <= 0.2 <= interval.high)
    assert 0.88 <= np.mean(held) <= 0.995


def test_too_few_seeds_and_equal_runs():
    assert paired_seed_interval([0.1, 0.2]) is None
    interval = paired_seed_interval([0.1, 0.1, 0.1])
    assert (interval.low, interval.high) == pytest.approx((0.1, 0.1))
