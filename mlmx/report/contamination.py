"""What the report says of judged examples that also occur in pretraining corpora."""

from __future__ import annotations

from collections.abc import Sequence

from mlmx.report.rows import Row


def contamination_notes(rows: Sequence[Row]) -> list[str]:
    """Say of each set of examples how many also occur in a pretraining corpus, and for which rows."""
    counts: dict[tuple[str, str], dict[tuple[int, int], list[str]]] = {}
    for row in rows:
        for place, count in _counts(row).items():
            counts.setdefault(place, {}).setdefault(count, []).append(row.label)
    notes = []
    clean = []
    for (task, split), found in sorted(counts.items()):
        for (number, total), labels in sorted(found.items()):
            which = "" if len(found) == 1 else f" ({'; '.join(labels)})"
            if number:
                notes.append(f"{number:,} of {total:,} examples of {task}, {split} also occur in a pretraining corpus{which}.")
            else:
                clean.append(f"{task}, {split}{which}")
    if notes:
        notes.append("contamination.jsonl of each evaluation lists these; decontamination.leave_out=true adds scores without them.")
    return notes + [f"No example occurs in a pretraining corpus: {'; '.join(clean)}."] * bool(clean)


def _counts(row: Row) -> dict[tuple[str, str], tuple[int, int]]:
    # Task and split -> the most that was counted for one of its scores: seeds may have other corpora.
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for key, scores in row.cells.items():
        for score in scores.values():
            if score.contaminated is not None:
                place = (key.task, key.split)
                counts[place] = max(counts.get(place, (0, 0)), score.contaminated)
    return counts
