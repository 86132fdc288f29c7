"""The table of GLUE: medians over seeds on the dev sets, and the average as the leaderboard takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from mlmx.report.rows import Row
from mlmx.report.runs import Run
from mlmx.report.tables import ScoreTable, Text

# The scores that make up each task, in the order of the leaderboard: (split, metric).
_SCORES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "CoLA": (("dev", "matthews"),),
    "SST-2": (("dev", "accuracy"),),
    "MRPC": (("dev", "f1"), ("dev", "accuracy")),
    "STS-B": (("dev", "pearson"), ("dev", "spearman")),
    "QQP": (("dev", "f1"), ("dev", "accuracy")),
    "MNLI": (("dev_matched", "accuracy"), ("dev_mismatched", "accuracy")),
    "QNLI": (("dev", "accuracy"),),
    "RTE": (("dev", "accuracy"),),
    "WNLI": (("dev", "accuracy"),),
}
_DATA = ("mlmx.tasks.glue_data.GlueData", "mlmx.tasks.glue_data.MnliData")
_TASK = "mlmx.tasks.glue.Glue"

_TITLE = "GLUE, dev"
EXPLANATION = (
    "GLUE: medians over seeds, in percent: Matthews' correlation of CoLA, F1/accuracy of MRPC and QQP, Pearson's/Spearman's "
    "correlation of STS-B, matched/mismatched accuracy of MNLI, accuracy of the others. The average is the mean over the nine "
    "tasks of the mean of a task's metrics, as on the leaderboard."
)


def glue_average(scores: Mapping[str, Sequence[float]]) -> float | None:
    """Return the average of the leaderboard, or None unless all nine tasks are there.

    A task with several metrics counts with their mean (arXiv 1804.07461, section 4), MNLI with that of its two test sets; the
    diagnostics do not count.

    Args:
        scores: dataset -> its metrics.
    """
    if scores.keys() != _SCORES.keys():
        return None
    return fmean(fmean(metrics) for metrics in scores.values())


def glue_table(rows: Sequence[Row], runs: Sequence[Run]) -> ScoreTable | None:
    """Return the table of the rows that were judged by tasks of GLUE, or None if there are none."""
    tasks = _glue_tasks(runs)
    found = {row.label: _scores(row, tasks) for row in rows}
    found = {label: scores for label, scores in found.items() if scores}
    if not found:
        return None
    lines = []
    for label, scores in found.items():
        average = glue_average(scores)
        missing = [dataset for dataset in _SCORES if dataset not in scores]
        cells = ["/".join(f"{100 * value:.1f}" for value in scores.get(dataset, ())) for dataset in _SCORES]
        told = f"none without {', '.join(missing)}" if average is None else f"{100 * average:.1f}"
        lines.append([Text(text) for text in (label, *cells, told)])
    return ScoreTable(_TITLE, ["configuration", *_SCORES, "average"], lines)


def _glue_tasks(runs: Sequence[Run]) -> dict[str, str]:
    """Return which tasks judge by which dataset: dataset -> task."""
    return {
        node["data"].get("dataset", "MNLI"): task
        for run in runs
        for task, node in run.tasks.items()
        if node.get("_target_") == _TASK and node["data"].get("_target_") in _DATA
    }


def _scores(row: Row, tasks: Mapping[str, str]) -> dict[str, list[float]]:
    medians = {
        (key.task, key.split, key.metric): median(score.value for score in scores.values())
        for key, scores in row.cells.items()
        if scores
    }
    found = {
        dataset: [medians.get((tasks[dataset], *score)) for score in wanted]
        for dataset, wanted in _SCORES.items()
        if dataset in tasks
    }
    return {dataset: [value for value in values if value is not None] for dataset, values in found.items() if None not in values}
