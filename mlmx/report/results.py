"""The report: read runs, compare configurations, write the tables."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import rich.text
from rich.console import Console
from rich.table import Table

from mlmx.report.comparison import Difference, Mean, difference, mean
from mlmx.report.contamination import contamination_notes
from mlmx.report.glue import EXPLANATION, glue_table
from mlmx.report.provenance import provenance_notes
from mlmx.report.rows import Row, choose_baselines, group
from mlmx.report.runs import Run, ScoreKey, canonical, read_runs
from mlmx.report.selection import select as choose
from mlmx.report.statistics import FEW_SEEDS, MIN_SEEDS
from mlmx.report.tables import Cell, Cells, ScoreTable, Text, score_tables


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
        *provenance_notes(runs),
    ]
    out = outputs / "report" if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    tables, explanations = score_tables(rows, keys, cells), [_explanation(baselines)]
    if (glue := glue_table(rows, runs)) is not None:
        tables, explanations = [*tables, glue], [*explanations, EXPLANATION]
    (out / "results.md").write_text(_markdown(tables, explanations, notes), encoding="utf-8")
    (out / "results.csv").write_text(_csv(rows, keys, cells, baselines), encoding="utf-8")
    return _terminal(tables, explanations, notes) + f"\nWritten to {out / 'results.md'} and {out / 'results.csv'}"


def _keys(rows: Sequence[Row]) -> list[ScoreKey]:
    # Task by task, in the order of the tasks' names; splits and metrics in the order the tasks give them.
    return sorted(dict.fromkeys(key for row in rows for key in row.cells), key=lambda key: key.task)


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


def _markdown(tables: Sequence[ScoreTable], explanations: Sequence[str], notes: Sequence[str]) -> str:
    lines = ["# Results", "", *(line for text in explanations for line in (text, ""))]
    for table in tables:
        lines += [f"## {table.title}", "", _markdown_line(table.columns), _markdown_line(["---"] * len(table.columns))]
        for line in table.lines:
            lines.append(_markdown_line([f"{text.value}{_markdown_change(text)}" for text in line]))
        lines.append("")
    if notes:
        lines += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def _markdown_change(text: Text) -> str:
    return f"<br>{text.change if text.better is None else f'**{text.change}**'}" if text.change else ""


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _terminal(tables: Sequence[ScoreTable], explanations: Sequence[str], notes: Sequence[str]) -> str:
    colours = {True: "green", False: "red", None: ""}
    is_terminal = sys.stdout.isatty()
    written = io.StringIO()
    # A file or a pipe gets the tables as wide as they are.
    console = Console(file=written, force_terminal=is_terminal, width=None if is_terminal else 10_000, highlight=False)
    for table in tables:
        shown = Table(*table.columns, title=table.title, title_justify="left")
        for line in table.lines:
            contents = [rich.text.Text(text.value) for text in line]
            for content, text in zip(contents, line, strict=True):
                if text.change:
                    content.append(f"\n{text.change}", style=colours[text.better])
            shown.add_row(*contents)
        console.print(shown)
    for told in (*explanations, *(f"- {note}" for note in notes)):
        console.print(rich.text.Text(told))
    return written.getvalue().rstrip("\n")


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
