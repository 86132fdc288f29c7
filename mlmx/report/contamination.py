"""What the report says of judged examples that also occur in pretraining corpora."""

from __future__ import annotations

from collections.abc import Sequence

from mlmx.report.rows import Row

# Splits of a task without any such example; languages may be many.
_MOST_NAMED = 3


def contamination_notes(rows: Sequence[Row]) -> list[str]:
    """Say of each set of examples how many also occur in a pretraining corpus, and for which rows."""
    counts: dict[tuple[str, str], dict[tuple[int, int], list[str]]] = {}
    for row in rows:
        for place, count in _counts(row).items():
            counts.setdefault(place, {}).setdefault(count, []).append(row.label)
    notes = []
    clean: dict[tuple[str, str], list[str]] = {}
    for (task, split), found in sorted(counts.items()):
        for (number, total), labels in sorted(found.items()):
            which = "" if len(found) == 1 else f" ({'; '.join(labels)})"
            if number:
                notes.append(f"{number:,} of {total:,} examples of {task}, {split} also occur in a pretraining corpus{which}.")
            else:
                clean.setdefault((task, which), []).append(split)
    if notes:
        notes.append("contamination.jsonl of each evaluation lists these; decontamination.leave_out=true adds scores without them.")
    told = [
        f"{task}, {f'{len(splits)} splits' if len(splits) > _MOST_NAMED else ', '.join(splits)}{which}"
        for (task, which), splits in clean.items()
    ]
    return notes + [f"No example occurs in a pretraining corpus: {'; '.join(told)}."] * bool(told)


def _counts(row: Row) -> dict[tuple[str, str], tuple[int, int]]:
    # Task and split -> the most that was counted for one of its scores: seeds may have other corpora.
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for key, scores in row.cells.items():
        for score in scores.values():
            if score.contaminated is not None:
                place = (key.task, key.split)
                counts[place] = max(counts.get(place, (0, 0)), score.contaminated)
    return counts
