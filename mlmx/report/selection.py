"""Choosing the value of a task's setting, such as a learning rate out of a small grid, by what is best on the dev split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from mlmx.errors import nearest, user_error
from mlmx.report.labels import differences, flat, shortened
from mlmx.report.runs import Run, RunScore, canonical


@dataclass(slots=True)
class _Grid:
    """The runs of one configuration and task that differ only in the setting: value -> seed -> run, the newest.

    Attributes:
        task: the task's name.
        settings: the configuration.
        runs: value (as canonical text) -> seed -> run.
    """

    task: str
    settings: Mapping[str, Any]
    runs: dict[str, dict[int, Run]] = field(default_factory=dict)


def select(runs: Sequence[Run], setting: str) -> tuple[list[Run], list[str]]:
    """Keep, of the runs that differ only in a setting of a task, those with the value that is best on the task's dev split.

    Best is the median over the seeds that all values have of the first metric of the first split called ``dev...``. What is kept
    loses the setting, so that it is one configuration whatever was chosen for each task.

    Args:
        runs: oldest first.
        setting: a setting of tasks, such as ``trainer.learning_rate``.

    Returns:
        The runs, without the tasks of which another value was chosen, and notes on what was chosen.

    Raises:
        UserError: if no task has such a setting, or was not judged on dev examples.
    """
    grids: dict[str, _Grid] = {}
    for run in runs:
        for task, node in run.tasks.items():
            if any(score.key.task == task for score in run.scores):
                rest = canonical([task, run.settings, _without(node, setting)])
                grid = grids.setdefault(rest, _Grid(task, run.settings))
                grid.runs.setdefault(canonical(_value(node, setting)), {})[run.seed] = run
    if not any(_value(node, setting) is not None for run in runs for node in run.tasks.values()):
        known = {key for run in runs for node in run.tasks.values() for key in flat(node)}
        raise user_error("select", f"no task has a setting {setting!r}.", nearest(setting, known))
    chosen = {rest: _best(grid, setting) for rest, grid in grids.items()}
    return [_kept(run, setting, chosen) for run in runs], _notes(grids, chosen, setting)


def _kept(run: Run, setting: str, chosen: Mapping[str, str]) -> Run:
    tasks = {}
    for task, node in run.tasks.items():
        rest = canonical([task, run.settings, _without(node, setting)])
        if rest not in chosen or chosen[rest] == canonical(_value(node, setting)):
            tasks[task] = _without(node, setting)
    return replace(run, tasks=tasks, scores=[score for score in run.scores if score.key.task in tasks])


def _best(grid: _Grid, setting: str) -> str:
    if len(grid.runs) == 1:
        return next(iter(grid.runs))
    sign = 1 if _judged(grid, setting)[0].higher_is_better else -1
    medians = _medians(grid, setting)
    return max(medians, key=lambda value: sign * medians[value])


def _medians(grid: _Grid, setting: str) -> dict[str, float]:
    _judged(grid, setting)
    seeds = _common_seeds(grid)
    if not seeds:
        raise user_error("select", f"{grid.task}: the values of {setting} were run with different seeds.")
    return {value: median(_dev_scores(by_seed[seed], grid.task)[0].value for seed in seeds) for value, by_seed in grid.runs.items()}


def _judged(grid: _Grid, setting: str) -> Sequence[RunScore]:
    """Return the dev scores of a run, if all have some."""
    found = [_dev_scores(run, grid.task) for by_seed in grid.runs.values() for run in by_seed.values()]
    if not all(found):
        raise user_error(f"task.{grid.task}.splits", f"{setting} is chosen on the dev split, by which {grid.task} was not judged.")
    return found[0]


def _common_seeds(grid: _Grid) -> list[int]:
    return sorted(set.intersection(*(set(by_seed) for by_seed in grid.runs.values())))


def _dev_scores(run: Run, task: str) -> list[RunScore]:
    return [score for score in run.scores if score.key.task == task and score.key.split.startswith("dev")]


def _notes(grids: Mapping[str, _Grid], chosen: Mapping[str, str], setting: str) -> list[str]:
    searched = {rest: grid for rest, grid in grids.items() if len(grid.runs) > 1}
    names = [
        ", ".join(f"{shortened(key, single_stage=True)}={value}" for key, value in different.items())
        for different in differences([grid.settings for grid in searched.values()])
    ]
    notes = []
    for (rest, grid), name in zip(searched.items(), names, strict=True):
        key = _judged(grid, setting)[0].key
        told = ", ".join(f"{value}: {score:.4f}" for value, score in _medians(grid, setting).items())
        seeds = ", ".join(map(str, _common_seeds(grid)))
        notes.append(
            f"{grid.task}{f' ({name})' if name else ''}: {setting}={chosen[rest]} has the best median of {key} over seeds {seeds} "
            f"({told}), so its {key.split} scores are the best of {len(grid.runs)}."
        )
    return notes


def _value(node: Mapping[str, Any], setting: str) -> Any:
    value: Any = node
    for part in setting.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _without(node: Mapping[str, Any], setting: str) -> dict[str, Any]:
    part, _, rest = setting.partition(".")
    if not rest or not isinstance(node.get(part), Mapping):
        return {key: value for key, value in node.items() if key != part or rest}
    return {**node, part: _without(node[part], rest)}
