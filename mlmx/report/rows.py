"""Grouping runs into the rows of the table: configurations, each with its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlmx.errors import nearest, user_error
from mlmx.report.labels import differences, flat, naming, shortened
from mlmx.report.runs import Run, RunScore, ScoreKey, canonical


@dataclass(slots=True)
class Row:
    """A configuration.

    Attributes:
        settings: its configuration, with the tasks that tell it from other rows.
        cells: score -> seed -> the score; of repeated runs the newest.
        tasks: the tasks that its runs were to be judged by.
        different: the settings in which it differs from other rows, key -> value.
        shown: those of them that name it: without the ones that always go with another.
        label: the same as one text.
    """

    settings: Mapping[str, Any]
    cells: dict[ScoreKey, dict[int, RunScore]] = field(default_factory=dict)
    tasks: set[str] = field(default_factory=set)
    different: dict[str, str] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    label: str = ""

    @property
    def seeds(self) -> list[int]:
        """The seeds that have any score."""
        return sorted({seed for scores in self.cells.values() for seed in scores})


@dataclass(frozen=True, slots=True)
class Grouped:
    """The rows, and what was noticed on the way."""

    rows: Sequence[Row]
    notes: Sequence[str]


def group(runs: Sequence[Run]) -> Grouped:
    """Group runs by configuration but for the seed.

    A run is judged by several tasks, and runs of one configuration need not share all of them. So the settings of a task tell rows
    apart only where that task came to scores with different settings in different runs; so do those of a task that it reads.

    Args:
        runs: oldest first.
    """
    variants: dict[str, set[str]] = {}
    for run in runs:
        for task in {score.key.task for score in run.scores} & run.tasks.keys():
            for one in (task, *run.reads.get(task, ())):
                variants.setdefault(one, set()).add(canonical(run.tasks[one]))
    rows: dict[str, Row] = {}
    notes = []
    repeated: set[str] = set()
    for run in runs:
        row_of_task = {}
        for task in run.tasks:
            shown = {one: run.tasks[one] for one in (*run.reads.get(task, ()), task) if len(variants.get(one, ())) > 1}
            settings = {**run.settings, "task": shown}
            row = row_of_task[task] = rows.setdefault(canonical(settings), Row(settings))
            row.tasks.add(task)
        for score in run.scores:
            if score.key.task not in row_of_task:
                continue
            scores = row_of_task[score.key.task].cells.setdefault(score.key, {})
            before = scores.get(run.seed)
            if before is not None:
                repeated.add(run.folder)
                if before.stage != score.stage and before.value != score.value:
                    notes.append(_changed(score, run, before))
            scores[run.seed] = score
    if repeated:
        notes.insert(0, f"{len(repeated)} runs repeat a configuration and seed; each counts once, the newest.")
    # A configuration of which no run came to a score would only make the names of the others longer.
    scored = [row for row in rows.values() if row.cells]
    notes += _name(scored)
    return Grouped(_merged(scored), list(dict.fromkeys(notes)))


def _changed(score: RunScore, run: Run, before: RunScore) -> str:
    return (
        f"The configuration of {run.folder} was run before as {before.stage} and now as {score.stage}: the content of its files or "
        "the code of its components has changed. The newest counts."
    )


def _name(rows: Sequence[Row]) -> list[str]:
    """Name the rows, and return notes on what the names do not say."""
    single_stage = all(len(row.settings.get("chain") or []) <= 1 for row in rows)
    for row, different in zip(rows, differences([row.settings for row in rows]), strict=True):
        row.different = {shortened(key, single_stage=single_stage): value for key, value in different.items()}
    keys, goes_with = naming([row.different for row in rows])
    for row in rows:
        row.shown = {key: row.different[key] for key in keys if key in row.different}
        shown = row.shown or _objectives(row, single_stage=single_stage)
        row.label = " ".join(f"{key}={value}" for key, value in shown.items())
    unsaid = [f"{', '.join(key for key in goes_with if goes_with[key] == kept)} with {kept}" for kept in keys]
    unsaid = [text for text in unsaid if not text.startswith(" with ")]
    return [
        f"Settings that differ too, each always along with one in the names (results.csv has them): {'; '.join(unsaid)}."
    ] * bool(unsaid)


def _merged(rows: Sequence[Row]) -> list[Row]:
    """Merge rows of one name: they differ in settings of tasks that always go with what names them, and share no task."""
    named: dict[str, Row] = {}
    for row in rows:
        first = named.setdefault(row.label, row)
        if first is not row:
            first.cells |= row.cells
            first.tasks |= row.tasks
            first.different |= row.different
    return list(named.values())


def _objectives(row: Row, *, single_stage: bool) -> dict[str, str]:
    # What to call a row that differs from others in nothing.
    settings = flat(row.settings)
    stages = row.settings.get("chain") or []
    keys = [f"stages.{stage}.objective" for stage in stages]
    return {shortened(key, single_stage=single_stage): settings[key] for key in keys if key in settings} or {
        "model": settings.get("model", "?")
    }


def choose_baselines(rows: Sequence[Row], baseline: str) -> dict[str, Row]:
    """Return the row that each other row is compared with: label -> row.

    Args:
        rows: all rows.
        baseline: a row's label, or ``key=value`` (several, separated by spaces). Where several rows have these values, a row is
            compared with the one that differs from it in nothing else.

    Raises:
        UserError: if no row has these values.
    """
    given = dict(part.partition("=")[::2] for part in baseline.split())
    exact = [row for row in rows if row.label == baseline]
    found = exact or [row for row in rows if _has(row, given)]
    if not found:
        raise _no_such_row(rows, given, baseline)
    if len(found) == 1:
        return {row.label: found[0] for row in rows if row is not found[0]}
    pairs = {}
    for row in rows:
        same = [other for other in found if _rest(other, given) == _rest(row, given)]
        if row not in found and len(same) == 1:
            pairs[row.label] = same[0]
    return pairs


def _all_settings(row: Row) -> dict[str, str]:
    single_stage = len(row.settings.get("chain") or []) <= 1
    return {shortened(key, single_stage=single_stage): value for key, value in flat(row.settings).items()} | row.different


def _has(row: Row, given: Mapping[str, str]) -> bool:
    settings = _all_settings(row)
    return all(settings.get(key) == value for key, value in given.items())


def _rest(row: Row, given: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in row.shown.items() if not any(key == one or key.startswith(f"{one}.") for one in given)}


def _no_such_row(rows: Sequence[Row], given: Mapping[str, str], baseline: str) -> Exception:
    labels = [row.label for row in rows]
    settings = [_all_settings(row) for row in rows]
    for key, value in given.items():
        keys = sorted({name for one in settings for name in one})
        if key not in keys:
            return user_error(
                "baseline", f"no configuration is called {baseline!r}; there are {', '.join(labels)}.", nearest(key, keys)
            )
        values = sorted({one[key] for one in settings if key in one})
        if value not in values:
            return user_error(
                "baseline", f"no configuration has {key}={value}; {key} is {', '.join(values)}.", nearest(value, values)
            )
    return user_error("baseline", f"no configuration has all of {baseline!r}; there are {', '.join(labels)}.")
