"""Intervals over seeds, and paired bootstrap intervals over seeds and examples."""

# S seeds, N examples, C components of a statistic, R resamples

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

# Below this there is no interval over seeds, and below the second a warning.
MIN_SEEDS = 3
FEW_SEEDS = 5

_CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000
_BOOTSTRAP_SEED = 0

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95% interval."""

    low: float
    high: float


def seed_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's t interval of the mean, or None for fewer than three seeds."""
    if len(values) < MIN_SEEDS:
        return None
    half = _student(len(values)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return Interval(mean - half, mean + half)


@dataclass(frozen=True, slots=True)
class Statistic:
    """A score as a function of sums over examples, so that resampling examples is a product of matrices.

    Attributes:
        components: (S, C, N) what each example adds to the C sums, per seed.
        score: (..., C, R) sums to (..., R) scores.
    """

    components: Floats
    score: Callable[[Floats], Floats]

    def values(self) -> Floats:
        """Return the (S,) scores on the examples as they are."""
        return self.score(self.components.sum(axis=2, keepdims=True))[:, 0]

    def resampled(self, weights_NR: NDArray[np.float32]) -> Floats:
        """Return the (S, R) scores on resampled examples: example n counts ``weights[n, r]`` times."""
        num_seeds, num_components, num_examples = self.components.shape
        sums = self.components.reshape(-1, num_examples) @ weights_NR
        return self.score(sums.reshape(num_seeds, num_components, -1))


def paired_interval(system: Statistic, baseline: Statistic) -> Interval:
    """Return the bootstrap interval of the mean over seeds of ``system - baseline``.

    Examples are resampled jointly for both sides and all seeds, since all were judged on the same ones; with at least three seeds,
    seeds are resampled as well, in pairs. Resampling S seeds understates their spread by (S - 1) / S and knows nothing of how
    uncertain a spread from few seeds is, so the resampled seeds' deviation from their mean is stretched by
    sqrt(S / (S - 1)) t / z, with which the interval is as wide as Student's where seeds are all that varies (the idea of
    Hesterberg's expanded percentile interval, arXiv 1411.5279).

    Args:
        system: one side, S seeds.
        baseline: the other side, the same seeds in the same order, the same examples in the same order.
    """
    num_examples = system.components.shape[2]
    differences_SR = np.concatenate(
        [system.resampled(weights) - baseline.resampled(weights) for weights in _resampled_counts(num_examples)], axis=1
    )
    return _percentiles(_over_seeds(differences_SR))


def paired_seed_interval(differences: Sequence[float]) -> Interval | None:
    """Return the bootstrap interval of the mean of per-seed differences, for scores without examples; None for too few seeds."""
    if len(differences) < MIN_SEEDS:
        return None
    repeated_SR = np.repeat(np.asarray(differences, np.float64)[:, None], _NUM_RESAMPLES, axis=1)
    return _percentiles(_over_seeds(repeated_SR))


def _over_seeds(differences_SR: Floats) -> Floats:
    num_seeds, num_resamples = differences_SR.shape
    means_R: Floats = differences_SR.mean(axis=0)
    if num_seeds < MIN_SEEDS:
        return means_R
    drawn_SR = np.random.default_rng(_BOOTSTRAP_SEED + 1).integers(num_seeds, size=(num_seeds, num_resamples))
    drawn_means_R = np.take_along_axis(differences_SR, drawn_SR, axis=0).mean(axis=0)
    z = float(ndtri((1 + _CONFIDENCE) / 2))
    stretch = math.sqrt(num_seeds / (num_seeds - 1)) * _student(num_seeds) / z
    result: Floats = means_R + stretch * (drawn_means_R - means_R)
    return result


def _student(num_values: int) -> float:
    return float(stdtrit(num_values - 1, (1 + _CONFIDENCE) / 2))


def _percentiles(resamples_R: Floats) -> Interval:
    low, high = np.quantile(resamples_R, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Interval(float(low), float(high))


@lru_cache(maxsize=4)
def _counts(num_examples: int) -> NDArray[np.uint8]:
    # (R, N) how often each example is drawn; an example drawn over 255 times out of N does not happen.
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    counts = np.empty((_NUM_RESAMPLES, num_examples), np.uint8)
    for row in counts:
        row[:] = np.bincount(rng.integers(num_examples, size=num_examples), minlength=num_examples)
    return counts


def _resampled_counts(num_examples: int) -> list[NDArray[np.float32]]:
    # (N, R') blocks, so that only a part is held in full width.
    counts = _counts(num_examples)
    return [block.T.astype(np.float32) for block in np.array_split(counts, max(1, counts.size // 20_000_000))]
