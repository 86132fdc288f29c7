"""The numbers of one cell: a mean over seeds, and the difference from a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlmx.report.predictions import statistic
from mlmx.report.rows import Row
from mlmx.report.runs import RunScore, ScoreKey
from mlmx.report.statistics import Interval, Statistic, paired_interval, paired_seed_interval, seed_interval


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of a score over seeds, and Student's interval where there are three or more."""

    value: float
    interval: Interval | None
    num_seeds: int
    num_examples: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean difference from a baseline over the seeds that both have.

    Attributes:
        value: the difference.
        interval: paired bootstrap interval; None where there is nothing to resample.
        num_seeds: seeds that both have.
        num_examples: examples that were resampled; None if the interval is over seeds only.
        better: whether the interval lies on the better side of 0 (True), on the worse (False), or holds it (None).
    """

    value: float
    interval: Interval | None
    num_seeds: int
    num_examples: int | None
    better: bool | None


def mean(row: Row, key: ScoreKey) -> Mean | None:
    """Return the mean of a score, or None if no seed has it."""
    scores = row.cells.get(key)
    if not scores:
        return None
    values = [score.value for _, score in sorted(scores.items())]
    num_examples = max(score.num_examples for score in scores.values())
    return Mean(float(np.mean(values)), seed_interval(values), len(values), num_examples)


def difference(row: Row, baseline: Row, key: ScoreKey, stages: Path) -> Difference | None:
    """Return the difference of a score from a baseline, or None if they share no seed.

    Args:
        row: the configuration.
        baseline: the configuration it is compared with.
        key: which score.
        stages: the folder of the stage directories, whose predictions are resampled.
    """
    ours, theirs = row.cells.get(key, {}), baseline.cells.get(key, {})
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    differences = [ours[seed].value - theirs[seed].value for seed in seeds]
    sides = [_resamplable(scores, seeds, key, stages) for scores in (ours, theirs)]
    interval: Interval | None
    num_examples = None
    if (left := sides[0]) is not None and (right := sides[1]) is not None and left[1] == right[1]:
        interval = paired_interval(left[0], right[0])
        num_examples = len(left[1])
    else:
        interval = paired_seed_interval(differences)
    better = None
    if interval is not None and (interval.low > 0 or interval.high < 0):
        better = (interval.low > 0) == ours[seeds[0]].higher_is_better
    return Difference(float(np.mean(differences)), interval, len(seeds), num_examples, better)


def _resamplable(
    scores: Mapping[int, RunScore], seeds: list[int], key: ScoreKey, stages: Path
) -> tuple[Statistic, tuple[str, ...]] | None:
    found = statistic([stages / scores[seed].stage for seed in seeds], key)
    if found is None or not np.allclose(found[0].values(), [scores[seed].value for seed in seeds], rtol=1e-6, atol=1e-9):
        # Predictions from which the score does not come out again are not what the score was computed from.
        return None
    return found
