"""The report: read runs, compare configurations, write the tables."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlmx.report.comparison import Difference, Mean, difference, mean
from mlmx.report.contamination import contamination_notes
from mlmx.report.glue import EXPLANATION, TITLE, GlueTable, glue_table
from mlmx.report.rows import Row, choose_baselines, group
from mlmx.report.runs import Run, ScoreKey, canonical, read_runs
from mlmx.report.selection import select as choose
from mlmx.report.statistics import FEW_SEEDS, MIN_SEEDS

_MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Cell:
    """One score of one row; None where there is none."""

    mean: Mean | None
    difference: Difference | None


Cells = Mapping[tuple[str, ScoreKey], Cell]


def report(outputs: Path, *, baseline: str | None = None, out: Path | None = None, select: str | None = None) -> str:
    """Write ``results.md`` and ``results.csv``, and return the tables as text for the terminal.

    Args:
        outputs: the folder with ``runs`` and ``stages``.
        baseline: what the others are compared with: a row's label, or ``key=value``.
        out: where to write; ``outputs/report`` if None.
        select: a setting of tasks whose value is chosen by the dev split, see ``mlmx.report.selection``.

    Raises:
        UserError: if there are no runs, no row is the baseline, or nothing can be selected.
    """
    runs = read_runs(outputs)
    runs, notes = choose(runs, select) if select is not None else (runs, [])
    grouped = group(runs)
    rows = grouped.rows
    baselines = choose_baselines(rows, baseline) if baseline is not None else {}
    keys = _keys(rows)
    cells = {
        (row.label, key): Cell(
            mean(row, key),
            difference(row, baselines[row.label], key, outputs / "stages") if row.label in baselines else None,
        )
        for row in rows
        for key in keys
    }
    notes += [
        *contamination_notes(rows),
        *_seed_notes(rows),
        *grouped.notes,
        *_baseline_notes(rows, baseline, baselines),
        *_failure_notes(runs),
    ]
    out = outputs / "report" if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    glue = glue_table(rows, runs)
    (out / "results.md").write_text(_markdown(rows, keys, cells, baselines, glue, notes), encoding="utf-8")
    (out / "results.csv").write_text(_csv(rows, keys, cells, baselines), encoding="utf-8")
    return _terminal(rows, keys, cells, baselines, glue, notes) + f"\nWritten to {out / 'results.md'} and {out / 'results.csv'}"


def _keys(rows: Sequence[Row]) -> list[ScoreKey]:
    # Task by task, in the order of the tasks' names; metrics in the order the tasks give them.
    keys = dict.fromkeys(key for row in rows for key in row.cells)
    return sorted(keys, key=lambda key: (key.task, key.split))


def _tables(rows: Sequence[Row], keys: Sequence[ScoreKey]) -> list[tuple[str, list[Row], list[ScoreKey]]]:
    # One table per task and split: title, the rows that were to be judged by the task, the metrics.
    tables = []
    for task, split in dict.fromkeys((key.task, key.split) for key in keys):
        shown = [row for row in rows if task in row.tasks]
        tables.append((f"{task}, {split}", shown, [key for key in keys if (key.task, key.split) == (task, split)]))
    return tables


def _mean_text(cell: Cell, num_seeds: int) -> str:
    if cell.mean is None:
        return _MISSING
    interval = cell.mean.interval
    text = f"{cell.mean.value:.4f}" + (f" [{interval.low:.4f}, {interval.high:.4f}]" if interval else "")
    return text if cell.mean.num_seeds == num_seeds else f"{text} ({cell.mean.num_seeds} of {num_seeds} seeds)"


def _difference_text(found: Difference) -> str:
    interval = f" [{found.interval.low:+.4f}, {found.interval.high:+.4f}]" if found.interval else ""
    resampled = f"{found.num_seeds} x {found.num_examples:,}" if found.num_examples is not None else f"{found.num_seeds}"
    return f"{found.value:+.4f}{interval} ({resampled})"


def _explanation(baselines: Mapping[str, Row]) -> str:
    text = (
        f"Means over seeds, with Student's 95% interval where there are at least {MIN_SEEDS} seeds; trivial: what the most "
        "frequent answer or chance gets."
    )
    if not baselines:
        return text
    names = ", ".join(dict.fromkeys(row.label for row in baselines.values()))
    return (
        f"{text} Below each mean, the difference from the baseline ({names}) with its paired 95% bootstrap interval and, in "
        f"parentheses, what it is resampled over: seeds x examples. Below {MIN_SEEDS} seeds only examples are resampled, and the "
        "interval says nothing of other seeds. Bold: the interval does not hold 0."
    )


def _markdown(
    rows: Sequence[Row],
    keys: Sequence[ScoreKey],
    cells: Cells,
    baselines: Mapping[str, Row],
    glue: GlueTable | None,
    notes: Sequence[str],
) -> str:
    lines = ["# Results", "", _explanation(baselines), ""]
    for title, shown, metrics in _tables(rows, keys):
        lines += [f"## {title}", "", _markdown_line(["configuration", "seeds", *(_heading(shown, key) for key in metrics)])]
        lines.append(_markdown_line(["---"] * (len(metrics) + 2)))
        for row in shown:
            texts = []
            for key in metrics:
                cell = cells[row.label, key]
                text = _mean_text(cell, len(row.seeds))
                if cell.difference is not None:
                    change = _difference_text(cell.difference)
                    text += f"<br>{change if cell.difference.better is None else f'**{change}**'}"
                texts.append(text)
            lines.append(_markdown_line([row.label, str(len(row.seeds)), *texts]))
        lines.append("")
    if glue is not None:
        lines += [f"## {TITLE}", "", _markdown_line(glue.columns), _markdown_line(["---"] * len(glue.columns))]
        lines += [*map(_markdown_line, glue.lines), "", EXPLANATION, ""]
    if notes:
        lines += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _heading(rows: Sequence[Row], key: ScoreKey) -> str:
    # The metric, its direction, and what the most frequent answer or chance would get.
    scores = [score for row in rows for score in row.cells.get(key, {}).values()]
    trivial = sorted({f"{score.trivial:.4f}" for score in scores if score.trivial is not None})
    direction = "higher" if scores[0].higher_is_better else "lower"
    if not trivial:
        return f"{key.metric} ({direction})"
    return f"{key.metric} ({direction}; trivial: {' to '.join(dict.fromkeys([trivial[0], trivial[-1]]))})"


def _terminal(
    rows: Sequence[Row],
    keys: Sequence[ScoreKey],
    cells: Cells,
    baselines: Mapping[str, Row],
    glue: GlueTable | None,
    notes: Sequence[str],
) -> str:
    colours = {True: "green", False: "red", None: ""}
    is_terminal = sys.stdout.isatty()
    text = io.StringIO()
    # A file or a pipe gets the tables as wide as they are.
    console = Console(file=text, force_terminal=is_terminal, width=None if is_terminal else 10_000, highlight=False)
    for title, shown, metrics in _tables(rows, keys):
        table = Table(title=title, title_justify="left")
        table.add_column("configuration")
        table.add_column("seeds", justify="right")
        for key in metrics:
            table.add_column(_heading(shown, key))
        for row in shown:
            texts = []
            for key in metrics:
                cell = cells[row.label, key]
                content = Text(_mean_text(cell, len(row.seeds)))
                if cell.difference is not None:
                    content.append("\n" + _difference_text(cell.difference), style=colours[cell.difference.better])
                texts.append(content)
            table.add_row(Text(row.label), str(len(row.seeds)), *texts)
        console.print(table)
    if glue is not None:
        table = Table(*glue.columns, title=TITLE, title_justify="left")
        for line in glue.lines:
            table.add_row(*map(Text, line))
        console.print(table)
    console.print(Text(_explanation(baselines)))
    if glue is not None:
        console.print(Text(EXPLANATION))
    for note in notes:
        console.print(Text(f"- {note}"))
    return text.getvalue().rstrip("\n")


def _csv(rows: Sequence[Row], keys: Sequence[ScoreKey], cells: Cells, baselines: Mapping[str, Row]) -> str:
    settings = list(dict.fromkeys(key for row in rows for key in row.different))
    parts = ["", ".low", ".high", ".seeds", ".examples"]
    if baselines:
        parts += [f".difference{part}" for part in ("", ".low", ".high", ".seeds", ".examples")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{key}{part}" for key in keys for part in parts]
    writer.writerow(["configuration", *settings, "baseline", "seeds", *columns])
    for row in rows:
        baseline = baselines[row.label].label if row.label in baselines else ""
        line: list[object] = [row.label, *(row.different.get(key, "") for key in settings), baseline, "+".join(map(str, row.seeds))]
        for key in keys:
            cell = cells[row.label, key]
            line += _csv_numbers(cell.mean) + (_csv_numbers(cell.difference) if baselines else [])
        writer.writerow(line)
    return text.getvalue()


def _csv_numbers(found: Mean | Difference | None) -> list[object]:
    if found is None:
        return [""] * 5
    low, high = (found.interval.low, found.interval.high) if found.interval else ("", "")
    return [found.value, low, high, found.num_seeds, "" if found.num_examples is None else found.num_examples]


def _seed_notes(rows: Sequence[Row]) -> list[str]:
    none = [row.label for row in rows if len(row.seeds) < MIN_SEEDS]
    few = [row.label for row in rows if MIN_SEEDS <= len(row.seeds) < FEW_SEEDS]
    notes = []
    for labels, told in (
        (none, f"Fewer than {MIN_SEEDS} seeds, so no interval over seeds"),
        (few, f"Fewer than {FEW_SEEDS} seeds, so the intervals are rough"),
    ):
        if labels:
            notes.append(f"{told}." if len(labels) == len(rows) else f"{told}: {'; '.join(labels)}.")
    return notes


def _baseline_notes(rows: Sequence[Row], baseline: str | None, baselines: Mapping[str, Row]) -> list[str]:
    if baseline is None:
        return []
    chosen = {row.label for row in baselines.values()}
    alone = [row.label for row in rows if row.label not in baselines and row.label not in chosen]
    if len(rows) == 1 or not alone:
        return []
    return [f"No configuration with {baseline} differs in nothing else from: {'; '.join(alone)}."]


def _failure_notes(runs: Sequence[Run]) -> list[str]:
    finished = {(canonical(run.settings), canonical(run.tasks), run.seed) for run in runs if run.status == "finished"}
    alike: dict[str, list[Run]] = {}
    for run in runs:
        if run.status != "finished" and (canonical(run.settings), canonical(run.tasks), run.seed) not in finished:
            alike.setdefault(f"{run.status}{': ' + run.error if run.error else ''}", []).append(run)
    notes = []
    for told, found in alike.items():
        number, which = ("1 run", "") if len(found) == 1 else (f"{len(found)} runs", "the last is ")
        notes.append(f"{number} {told} ({which}{found[-1].folder}, seed {found[-1].seed})")
    return notes
