from __future__ import annotations

import pytest

from mlmx.report.glue import glue_average, glue_table
from mlmx.report.rows import group
from mlmx.report.runs import Run, RunScore, ScoreKey

# T5-11B on the leaderboard (arXiv 1910.10683, table 14), whose average is 90.3.
T5 = {
    "CoLA": [71.6],
    "SST-2": [97.5],
    "MRPC": [92.8, 90.4],
    "STS-B": [93.1, 92.8],
    "QQP": [75.1, 90.6],
    "MNLI": [92.2, 91.9],
    "QNLI": [96.9],
    "RTE": [92.8],
    "WNLI": [94.5],
}
SCORES = {"CoLA": ["matthews"], "MRPC": ["f1", "accuracy"], "QQP": ["f1", "accuracy"], "STS-B": ["pearson", "spearman"]}


def run(seed: int, values: dict[str, list[float]]) -> Run:
    tasks, scores = {}, []
    for dataset, metrics in values.items():
        name = dataset.lower().replace("-", "")
        target, data = ("MnliData", {}) if dataset == "MNLI" else ("GlueData", {"dataset": dataset})
        tasks[name] = {"_target_": "mlmx.tasks.glue.Glue", "data": {"_target_": f"mlmx.tasks.glue_data.{target}", **data}}
        if dataset == "MNLI":
            keys = [(split, "accuracy") for split in ("dev_matched", "dev_mismatched")]
        else:
            keys = [("dev", metric) for metric in SCORES.get(dataset, ["accuracy"])]
        keys = [*keys, ("ax", "matthews")]
        scores += [
            RunScore(key=ScoreKey(name, *key), value=value / 100, num_examples=5, higher_is_better=True, stage=f"{name}{seed}")
            for key, value in zip(keys, [*metrics, 0.0], strict=True)
        ]
    return Run(
        folder=str(seed), started="", status="finished", error="", seed=seed, settings={"model": "t5"}, tasks=tasks, scores=scores
    )


def table(runs: list[Run]):
    found = glue_table(group(runs).rows, runs)
    assert found is not None
    ((_, *cells),) = found.lines
    return dict(zip(found.columns[1:], [cell.value for cell in cells], strict=True))


def test_the_average_is_that_of_the_leaderboard():
    assert glue_average(T5) == pytest.approx(90.3, abs=0.05)
    assert glue_average({dataset: T5[dataset] for dataset in T5 if dataset != "WNLI"}) is None
    found = table([run(0, T5)])
    assert found["average"] == "90.3"
    assert (found["MRPC"], found["MNLI"], found["CoLA"]) == ("92.8/90.4", "92.2/91.9", "71.6")


def test_there_is_no_average_without_all_tasks():
    found = table([run(0, {"CoLA": [50.0], "RTE": [60.0]})])
    assert found["average"] == "none without SST-2, MRPC, STS-B, QQP, MNLI, QNLI, WNLI"
    assert (found["RTE"], found["QQP"]) == ("60.0", "")


def test_seeds_count_by_their_median():
    found = table([run(seed, {"CoLA": [value]}) for seed, value in enumerate((10.0, 11.0, 60.0))])
    assert found["CoLA"] == "11.0"


def test_other_tasks_make_no_table():
    bitext = {"bitext": {"_target_": "mlmx.tasks.bitext.Bitext", "data": {"_target_": "D"}}}
    scores = [RunScore(key=ScoreKey("bitext", "dev", "f1"), value=0.5, num_examples=5, higher_is_better=True, stage="s")]
    runs = [Run(folder="0", started="", status="finished", error="", seed=0, settings={}, tasks=bitext, scores=scores)]
    assert glue_table(group(runs).rows, runs) is None
