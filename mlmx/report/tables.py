"""The tables of a report: which lines and columns there are, and what stands in their cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlmx.report.comparison import Difference, Mean
from mlmx.report.rows import Row
from mlmx.report.runs import RunScore, ScoreKey

_MISSING = "missing"
# Systems that a task judges beside the encoder: how the names of their metrics begin, and what their line is called.
_REFERENCES = {"bm25_": "BM25", "untrained_": "untrained", "before_pretraining_": "before pretraining"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One score of one row; None where there is none."""

    mean: Mean | None
    difference: Difference | None


Cells = Mapping[tuple[str, ScoreKey], Cell]


@dataclass(frozen=True, slots=True)
class Text:
    """What stands in a cell of a table.

    Attributes:
        value: the text.
        change: the difference from the baseline; empty if there is none.
        better: whether the change is clearly for the better (True), for the worse (False), or neither (None).
    """

    value: str
    change: str = ""
    better: bool | None = None


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """A table: its title, the headings of its columns, and its lines."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[Text]]


def score_tables(rows: Sequence[Row], keys: Sequence[ScoreKey], cells: Cells) -> list[ScoreTable]:
    """Return the tables, task by task: one for the metrics that were computed together, with a line for each split and row.

    Args:
        rows: the configurations.
        keys: all scores, in the order of the columns.
        cells: the numbers.
    """
    tables = []
    for task in dict.fromkeys(key.task for key in keys):
        shown = [row for row in rows if task in row.tasks]
        tables += [_table(task, metrics, shown, keys, cells) for metrics in _computed_together(task, shown)]
    return tables


def _computed_together(task: str, rows: Sequence[Row]) -> list[list[str]]:
    # Protocols of a task share no metric, so that each has a table and none is said to be missing in that of another. The main
    # metric comes first.
    groups: list[dict[str, None]] = []
    for row in rows:
        of_split: dict[str, dict[str, None]] = {}
        for key in row.cells:
            if key.task == task:
                of_split.setdefault(key.split, {})[key.metric] = None
        for found in of_split.values():
            touched = [group for group in groups if group.keys() & found.keys()]
            groups = [group for group in groups if group not in touched]
            groups.append({metric: None for group in [*touched, found] for metric in group})
    main = {key.metric for row in rows for key, scores in row.cells.items() if any(score.main for score in scores.values())}
    return [sorted(group, key=lambda metric: metric not in main) for group in groups]


def _table(task: str, metrics: Sequence[str], rows: Sequence[Row], keys: Sequence[ScoreKey], cells: Cells) -> ScoreTable:
    keys = [key for key in keys if key.task == task and key.metric in metrics]
    splits = list(dict.fromkeys(key.split for key in keys))
    references = {prefix: values for prefix in _REFERENCES if (values := _reference(prefix, keys, rows))}
    metrics = [metric for metric in metrics if not metric.startswith(tuple(references))]
    lines = []
    for split in splits:
        place = [split] if len(splits) > 1 else []
        for row in rows:
            found = [cells.get((row.label, ScoreKey(task, split, metric)), Cell(None, None)) for metric in metrics]
            if any(cell.mean for cell in found) or not any(key.task == task for key in row.cells):
                begin = [Text(text) for text in (*place, row.label, str(len(row.seeds)))]
                lines.append([*begin, *(_text(cell, len(row.seeds)) for cell in found)])
        for prefix, values in references.items():
            begin = [Text(text) for text in (*place, _REFERENCES[prefix], "")]
            lines.append([*begin, *(Text(values.get((split, metric), "")) for metric in metrics)])
    headings = [_heading(rows, [key for key in keys if key.metric == metric]) for metric in metrics]
    columns = [*(["split"] if len(splits) > 1 else []), "configuration", "seeds", *headings]
    return ScoreTable(task if len(splits) > 1 else f"{task}, {splits[0]}", columns, lines)


def _reference(prefix: str, keys: Sequence[ScoreKey], rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    # (split, metric) -> the value of a system that does not depend on the configuration; empty where it does.
    values = {}
    for key in keys:
        if key.metric.startswith(prefix):
            found = {f"{score.value:.4f}" for row in rows for score in row.cells.get(key, {}).values()}
            if len(found) > 1:
                return {}
            values[key.split, key.metric.removeprefix(prefix)] = found.pop()
    return values


def _text(cell: Cell, num_seeds: int) -> Text:
    if cell.mean is None:
        return Text(_MISSING)
    interval = cell.mean.interval
    value = f"{cell.mean.value:.4f}" + (f" [{interval.low:.4f}, {interval.high:.4f}]" if interval else "")
    if cell.mean.num_seeds != num_seeds:
        value += f" ({cell.mean.num_seeds} of {num_seeds} seeds)"
    return Text(value) if cell.difference is None else Text(value, _change(cell.difference), cell.difference.better)


def _change(found: Difference) -> str:
    interval = f" [{found.interval.low:+.4f}, {found.interval.high:+.4f}]" if found.interval else ""
    resampled = f"{found.num_seeds} x {found.num_examples:,}" if found.num_examples is not None else f"{found.num_seeds}"
    return f"{found.value:+.4f}{interval} ({resampled})"


def _heading(rows: Sequence[Row], keys: Sequence[ScoreKey]) -> str:
    # The metric, its direction, and what the most frequent answer or chance would get.
    scores = list(_scores(rows, keys))
    trivial = sorted({score.trivial for score in scores if score.trivial is not None})
    direction = "higher" if scores[0].higher_is_better else "lower"
    if not trivial:
        return f"{keys[0].metric} ({direction})"
    ends = dict.fromkeys(f"{value:.4f}" for value in (trivial[0], trivial[-1]))
    return f"{keys[0].metric} ({direction}; trivial: {' to '.join(ends)})"


def _scores(rows: Sequence[Row], keys: Sequence[ScoreKey]) -> Iterator[RunScore]:
    return (score for row in rows for key in keys for score in row.cells.get(key, {}).values())
