from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from mlmx.errors import UserError
from mlmx.report import report
from mlmx.report.predictions import statistic
from mlmx.report.runs import ScoreKey

NUM_EXAMPLES = 50


def config(objective: str, seed: int, tasks: dict, **changes) -> dict:
    trainer = {"_target_": "mlmx.training.trainer.Trainer", "_name_": "pretrain", "_version_": 1, "max_steps": 10}
    trainer |= {"_no_effect_": ["log_every_steps"], "log_every_steps": seed + 1}
    return {
        "name": f"run{seed}",
        "seed": seed,
        "chain": ["pretrain"],
        "model": {"_target_": "mlmx.models.load.Scratch", "_name_": "tiny", "_version_": 1, "hidden_size": 128},
        "corpus": {"_target_": "C", "_name_": objective, "_version_": 1},
        "stages": {
            "pretrain": {
                "objective": {"_target_": f"mlmx.objectives.{objective}", "_name_": objective, "_version_": 1, "mask_ratio": 0.15},
                "corpus": {"_target_": "C", "_name_": "microworld", "_version_": 1},
                "annotator": {"_target_": "A", "_name_": "gold", "_version_": 1} if seed else None,
                "trainer": trainer | changes,
            }
        },
        "task": tasks,
        "outputs": f"/somewhere/{seed}",
        "places": {},
        "parallel": {"num_processes": 1 + seed % 2},
    }


def bitext(**settings) -> dict:
    return {
        "bitext": {"_target_": "mlmx.tasks.bitext.Bitext", "_name_": "bitext", "_version_": 1, "name": "bitext", "layer": 2}
        | settings
    }


class Outputs:
    """Writes runs as the driver does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0

    def run(
        self, objective: str, seed: int, accuracy: float | None, *, status: str = "finished", tasks=None, stage: str = "", **changes
    ) -> None:
        self.number += 1
        tasks = bitext() if tasks is None else tasks
        stage = (
            stage
            or f"eval-bitext-{objective}{seed}{json.dumps(tasks) + json.dumps(changes) if tasks != bitext() or changes else ''}"
        )
        stage = "".join(c for c in stage if c.isalnum() or c == "-")
        scores = []
        if accuracy is not None:
            hits = np.arange(NUM_EXAMPLES) < round(accuracy * NUM_EXAMPLES)
            (self.folder / "stages" / stage).mkdir(parents=True, exist_ok=True)
            records = [
                {"id": f"forward {i}", "split": "test", "ratios": {"accuracy_forward": [int(hit), 1]}} for i, hit in enumerate(hits)
            ]
            (self.folder / "stages" / stage / "predictions.jsonl").write_text(
                "".join(f"{json.dumps(record)}\n" for record in records)
            )
            score = {"task": "bitext", "split": "test", "metric": "accuracy_forward", "value": float(hits.mean())}
            scores = [score | {"num_examples": NUM_EXAMPLES, "higher_is_better": True, "stage": stage}]
        folder = self.folder / "runs" / f"2026-01-01_00-00-{self.number:02}-run"
        folder.mkdir(parents=True)
        summary = {
            "config": config(objective, seed, tasks, **changes),
            "seed": seed,
            "status": status,
            "started": f"2026-01-01T00:00:{self.number:02}",
            "error": None if status == "finished" else {"message": "OSError: the disk is full"},
            "scores": scores,
        }
        (folder / "summary.json").write_text(json.dumps(summary))

    def change_scores(self, **changes) -> None:
        """Change all scores of the last run."""
        path = max((self.folder / "runs").glob("*/summary.json"))
        summary = json.loads(path.read_text())
        path.write_text(json.dumps(summary | {"scores": [score | changes for score in summary["scores"]]}))

    def add_score(self, **changes) -> None:
        """Give the last run another score, like its first one but for the changes."""
        path = max((self.folder / "runs").glob("*/summary.json"))
        summary = json.loads(path.read_text())
        path.write_text(json.dumps(summary | {"scores": [*summary["scores"], summary["scores"][0] | changes]}))

    def report(self, **settings) -> str:
        return report(self.folder, **settings)

    def csv(self) -> list[dict[str, str]]:
        with (self.folder / "report" / "results.csv").open() as file:
            return list(csv.DictReader(file))


@pytest.fixture
def outputs(tmp_path) -> Outputs:
    return Outputs(tmp_path)


KEY = "bitext/test/accuracy_forward"


@pytest.mark.parametrize("with_scores", [True, False])
def test_what_goes_on_from_a_task_stands_in_its_row(outputs, with_scores):
    after = {"_target_": "mlmx.tasks.After", "_name_": "after", "name": "after", "_tasks_": ["train"], "train": "bitext"}
    for layer in (1, 2):
        outputs.run("mlm", 0, 0.5, tasks={**bitext(layer=layer), "after": after})
        (outputs.add_score if with_scores else outputs.change_scores)(task="after", value=layer / 10)
    outputs.report()
    rows = outputs.csv()
    assert [row["configuration"] for row in rows] == ["task.bitext.layer=1", "task.bitext.layer=2"]
    assert [float(row["after/test/accuracy_forward"]) for row in rows] == [0.1, 0.2]
    assert [KEY in row for row in rows] == [with_scores] * 2


def test_one_row_per_configuration_with_means_and_differences(outputs):
    for seed, (mlm, tlm) in enumerate([(0.2, 0.6), (0.3, 0.6), (0.4, 0.9)]):
        outputs.run("mlm", seed, mlm)
        outputs.run("tlm", seed, tlm)
    text = outputs.report(baseline="objective=mlm")
    rows = outputs.csv()
    # The seed, the run's name, devices, settings without effect and an annotator nobody needs make no rows.
    assert [row["configuration"] for row in rows] == ["objective=mlm", "objective=tlm"]
    assert [row["seeds"] for row in rows] == ["0+1+2"] * 2
    assert float(rows[0][KEY]) == pytest.approx(0.3)
    assert float(rows[0][f"{KEY}.high"]) == pytest.approx(0.3 + 4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert rows[0]["baseline"] == rows[0][f"{KEY}.difference"] == ""
    assert float(rows[1][f"{KEY}.difference"]) == pytest.approx(0.4)
    assert (rows[1][f"{KEY}.difference.seeds"], rows[1][f"{KEY}.difference.examples"]) == ("3", str(NUM_EXAMPLES))
    assert 0 < float(rows[1][f"{KEY}.difference.low"]) < 0.4 < float(rows[1][f"{KEY}.difference.high"])
    markdown = (outputs.folder / "report" / "results.md").read_text()
    assert "| objective=tlm | 3 | 0.7000 [0.2697, 1.1303]<br>**+0.4000 [" in markdown
    assert "Fewer than 5 seeds, so the intervals are rough.\n" in markdown
    assert "objective=tlm" in text
    assert "+0.4000" in text


def test_too_few_seeds_have_no_interval_over_seeds(outputs):
    for seed in range(2):
        outputs.run("mlm", seed, 0.2)
        outputs.run("tlm", seed, 0.6)
    text = outputs.report(baseline="objective=mlm")
    row = outputs.csv()[1]
    assert row[f"{KEY}.low"] == ""
    # Examples alone: 20 of 50 differ by 1, so the standard error is about sqrt(0.4 * 0.6 / 50) = 0.069.
    low, high = float(row[f"{KEY}.difference.low"]), float(row[f"{KEY}.difference.high"])
    assert (low, high) == pytest.approx((0.4 - 0.136, 0.4 + 0.136), abs=0.03)
    assert "Fewer than 3 seeds, so no interval over seeds.\n" in text


def test_repeated_runs_count_once_and_failures_are_listed(outputs):
    outputs.run("mlm", 0, 0.2)
    outputs.run("mlm", 0, 0.2)
    outputs.run("mlm", 1, None, status="failed")
    outputs.run("mlm", 1, 0.4)
    outputs.run("tlm", 0, None, status="failed")
    outputs.run("tlm", 1, None, status="failed", max_steps=99)
    text = outputs.report()
    # What has no score lengthens no name.
    assert [row["configuration"] for row in outputs.csv()] == ["objective=mlm"]
    assert outputs.csv()[0]["seeds"] == "0+1"
    assert float(outputs.csv()[0][KEY]) == pytest.approx(0.3)
    assert "1 runs repeat a configuration and seed; each counts once, the newest." in text
    # What was mended since is no failure any more; what was not is told once.
    assert "- 2 runs failed: OSError: the disk is full (the last is 2026-01-01_00-00-06-run, seed 1)" in text
    assert text.count("failed") == 1


def test_names_say_what_tells_rows_apart_and_no_more(outputs):
    def run(mono: str, para: str, mono_steps: int, para_steps: int) -> None:
        number = outputs.number
        outputs.run(para, 0, 0.2, stage=f"eval-bitext-{number}")
        path = max((outputs.folder / "runs").glob("*/summary.json"))
        summary = json.loads(path.read_text())
        stages = {
            name: config(one, 1, {}, max_steps=steps)["stages"]["pretrain"]
            for name, one, steps in (("mono", mono, mono_steps), ("para", para, para_steps))
        }
        summary["config"] |= {"chain": ["mono", "para"], "stages": stages}
        path.write_text(json.dumps(summary))

    run("lem_mono", "lem_para", 200, 1500)
    run("mlm", "tlm", 200, 1500)
    run("mlm", "mlm", 200, 1500)
    assert "along with one in the names (results.csv has them): mono.objective with para.objective." in outputs.report()
    assert [row["configuration"] for row in outputs.csv()] == [f"para.objective={one}" for one in ("lem_para", "tlm", "mlm")]
    assert [row["mono.objective"] for row in outputs.csv()] == ["lem_mono", "mlm", "mlm"]
    run("mlm", "tlm", 0, 0)
    outputs.report(baseline="para.objective=tlm para.trainer.max_steps=1500")
    names = [f"para.objective={one} para.trainer.max_steps=1500" for one in ("lem_para", "tlm", "mlm")]
    assert [row["configuration"] for row in outputs.csv()] == [*names, "para.objective=tlm para.trainer.max_steps=0"]
    assert [row["baseline"] for row in outputs.csv()] == [names[1], "", names[1], names[1]]


def test_a_mistake_of_several_lines_is_named_by_its_setting(outputs):
    outputs.run("mlm", 0, 0.2)
    outputs.run("tlm", 0, None, status="failed")
    path = max((outputs.folder / "runs").glob("*/summary.json"))
    error = {"problems": [{"where": "annotator.path", "message": "x cannot be loaded: so\nand so", "nearest": None}]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"error": error}))
    assert "1 run failed: annotator.path: x cannot be loaded: so (2026-" in outputs.report()


def test_the_same_settings_with_other_data_are_pointed_out(outputs):
    outputs.run("mlm", 0, 0.2, stage="eval-bitext-aaaa")
    outputs.run("mlm", 0, 0.6, stage="eval-bitext-bbbb")
    text = outputs.report()
    assert float(outputs.csv()[0][KEY]) == pytest.approx(0.6)
    assert "was run before as eval-bitext-aaaa and now as eval-bitext-bbbb" in text


def test_settings_of_a_task_make_rows_only_where_they_differ(outputs):
    for layer in (1, 2):
        for objective in ("mlm", "tlm"):
            outputs.run(objective, 0, 0.1 * layer, tasks=bitext(layer=layer))
    outputs.report(baseline="objective=mlm")
    rows = outputs.csv()
    assert {row["configuration"]: row["baseline"] for row in rows} == {
        "objective=mlm task.bitext.layer=1": "",
        "objective=tlm task.bitext.layer=1": "objective=mlm task.bitext.layer=1",
        "objective=mlm task.bitext.layer=2": "",
        "objective=tlm task.bitext.layer=2": "objective=mlm task.bitext.layer=2",
    }


def test_how_a_task_judges_makes_rows_and_which_scores_it_gives_makes_none(outputs):
    tasks = bitext(_no_effect_on_training_=["splits", "num_beams"], num_beams=1)
    for splits, num_beams in ((["test"], 1), (["dev", "test"], 1), (["test"], 4)):
        node = tasks["bitext"] | {"splits": splits, "num_beams": num_beams}
        outputs.run("mlm", 0, 0.2 if num_beams == 1 else 0.4, tasks={"bitext": node})
    assert "has changed" not in outputs.report()
    assert {row["configuration"]: float(row[KEY]) for row in outputs.csv()} == {
        "task.bitext.num_beams=1": 0.2,
        "task.bitext.num_beams=4": 0.4,
    }


def test_runs_that_share_not_all_tasks_share_a_row(outputs):
    outputs.run("mlm", 0, 0.2)
    outputs.run("mlm", 1, None, tasks=bitext() | {"sentiment": {"_target_": "S", "_name_": "sentiment", "name": "sentiment"}})
    outputs.report()
    assert [row["configuration"] for row in outputs.csv()] == ["objective=mlm"]


def test_other_settings_and_paths(outputs):
    for path in ("/data/a/news.txt", "/data/b/flores.txt"):
        for steps in (10, 20):
            outputs.run("mlm", 0, 0.2, max_steps=steps, path=path)
    outputs.report(baseline="trainer.max_steps=10")
    assert [row["configuration"] for row in outputs.csv()] == [
        "trainer.max_steps=10 trainer.path=news.txt",
        "trainer.max_steps=20 trainer.path=news.txt",
        "trainer.max_steps=10 trainer.path=flores.txt",
        "trainer.max_steps=20 trainer.path=flores.txt",
    ]
    assert [row["baseline"] for row in outputs.csv()][1::2] == [row["configuration"] for row in outputs.csv()][::2]


def test_a_score_without_predictions_is_compared_over_seeds(outputs):
    for seed in range(3):
        outputs.run("mlm", seed, 0.2)
        outputs.run("tlm", seed, 0.4 + 0.1 * seed)
    for path in (outputs.folder / "stages").glob("*/predictions.jsonl"):
        path.unlink()
    outputs.report(baseline="objective=mlm")
    row = outputs.csv()[1]
    assert (row[f"{KEY}.difference.seeds"], row[f"{KEY}.difference.examples"]) == ("3", "")
    assert float(row[f"{KEY}.difference.low"]) < 0.3 < float(row[f"{KEY}.difference.high"])


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("objective=mln", r"baseline: no configuration has objective=mln; objective is mlm, tlm. Did you mean 'mlm'\?"),
        ("objectiv=mlm", r"no configuration is called 'objectiv=mlm'; there are .* Did you mean 'objective'\?"),
        ("objective=mlm trainer.max_steps=20", "no configuration has trainer.max_steps=20"),
    ],
)
def test_an_unknown_baseline(outputs, baseline, message):
    outputs.run("mlm", 0, 0.2)
    outputs.run("tlm", 0, 0.2)
    with pytest.raises(UserError, match=message):
        outputs.report(baseline=baseline)


def test_the_main_score_comes_first(outputs):
    outputs.run("mlm", 0, 0.5)
    outputs.add_score(metric="margin_f1", value=0.25, main=True)
    told = outputs.report()
    assert told.index("margin_f1") < told.index("accuracy_forward")


def test_no_runs_and_a_broken_summary(outputs):
    with pytest.raises(UserError, match="there is no run in"):
        outputs.report()
    (outputs.folder / "runs" / "x").mkdir(parents=True)
    (outputs.folder / "runs" / "x" / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"x/summary.json: is no summary of a run"):
        outputs.report()


def test_class_scores_come_out_of_labels_and_predictions(tmp_path):
    rng = np.random.default_rng(0)
    gold = rng.choice(["a", "b", "c"], 300, p=[0.6, 0.3, 0.1]).tolist()
    predicted = [label if rng.random() < 0.6 else str(rng.choice(["a", "b", "d"])) for label in gold]
    records = [
        {"id": str(i), "split": "test", "label": g, "prediction": p} for i, (g, p) in enumerate(zip(gold, predicted, strict=True))
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    for metric, average in (("macro_f1", "macro"), ("weighted_f1", "weighted"), ("accuracy", "micro")):
        found, ids = statistic([tmp_path], ScoreKey("t", "test", metric))
        labels = ["a", "b", "c"]
        expected = (
            np.mean(np.array(gold) == predicted)
            if metric == "accuracy"
            else f1_score(gold, predicted, labels=labels, average=average)
        )
        assert found.values()[0] == pytest.approx(expected)
        assert len(ids) == 300
        # A resample is the score of the resampled lists.
        drawn = rng.integers(300, size=300)
        weights = np.bincount(drawn, minlength=300).astype(np.float32)[:, None]
        resampled = [gold[i] for i in drawn], [predicted[i] for i in drawn]
        expected = np.mean(np.array(resampled[0]) == resampled[1])
        if metric != "accuracy":
            expected = f1_score(*resampled, labels=labels, average=average)
        assert found.resampled(weights)[0, 0] == pytest.approx(expected)


def test_the_report_imports_nothing_of_the_workers():
    code = (
        "import sys, mlmx.report; print([m for m in ('torch', 'transformers', 'datasets', 'wandb', 'sklearn') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_what_the_most_frequent_answer_gets_stands_beside_the_metric(outputs):
    outputs.run("mlm", 0, 0.5)
    assert "accuracy_forward (higher) " in outputs.report()
    outputs.change_scores(trivial=0.25)
    assert "accuracy_forward (higher; trivial: 0.2500)" in outputs.report()
    outputs.run("mlm", 1, 0.5)
    outputs.change_scores(trivial=0.3, higher_is_better=True)
    assert "accuracy_forward (higher; trivial: 0.2500 to 0.3000)" in outputs.report()


@pytest.mark.parametrize("metric", ["matthews", "pearson"])
def test_correlations_come_out_of_the_predictions_again(tmp_path, metric):
    rng = np.random.default_rng(0)
    gold = rng.integers(3, size=(2, 200))[0] if metric == "matthews" else rng.normal(size=200)
    predicted = np.where(rng.random(200) < 0.6, gold, rng.permutation(gold))
    records = [
        {"id": str(i), "split": "dev", "label": g, "prediction": p}
        for i, (g, p) in enumerate(zip(gold.tolist(), predicted.tolist(), strict=True))
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    found, _ = statistic([tmp_path], ScoreKey("t", "dev", metric))
    drawn = rng.integers(200, size=200)
    weights = np.bincount(drawn, minlength=200).astype(np.float32)[:, None]
    score = matthews_corrcoef if metric == "matthews" else lambda a, b: np.corrcoef(a, b)[0, 1]
    assert found.values()[0] == pytest.approx(score(gold, predicted), abs=1e-9)
    assert found.resampled(weights)[0, 0] == pytest.approx(score(gold[drawn], predicted[drawn]), abs=1e-6)


def test_a_setting_is_chosen_and_reported(outputs):
    for seed in range(3):
        for layer, accuracy in ((1, 0.2), (2, 0.6)):
            outputs.run("mlm", seed, accuracy, tasks=bitext(layer=layer))
            outputs.change_scores(split="dev")
    text = outputs.report(select="layer")
    assert [row["seeds"] for row in outputs.csv()] == ["0+1+2"]
    assert float(outputs.csv()[0]["bitext/dev/accuracy_forward"]) == pytest.approx(0.6)
    assert "bitext: layer=2 has the best median of bitext/dev/accuracy_forward over seeds 0, 1, 2 (1: 0.2000, 2: 0.6000)" in text


def test_settings_of_a_task_that_came_to_no_score_make_no_row_of_their_own(outputs):
    other = {"rte": {"_target_": "mlmx.tasks.glue.Glue", "_name_": "rte", "data": {}}}
    outputs.run("mlm", 0, None, status="failed", tasks=bitext(layer=1) | other)
    outputs.run("mlm", 0, 0.4, tasks=bitext(layer=2) | other)
    outputs.add_score(task="rte")
    outputs.report()
    (row,) = outputs.csv()
    assert float(row[KEY]) == float(row["rte/test/accuracy_forward"]) == pytest.approx(0.4)


def markdown_table(outputs: Outputs, title: str) -> list[list[str]]:
    text = (outputs.folder / "report" / "results.md").read_text().split(f"## {title}\n\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "---" not in line]


def test_splits_of_a_task_share_a_table_and_protocols_do_not(outputs):
    outputs.run("mlm", 0, 0.2)
    outputs.add_score(split="deu", value=0.3)
    outputs.run("mlm", 0, None, tasks=bitext(protocol="margin"))
    path = max((outputs.folder / "runs").glob("*/summary.json"))
    score = {"task": "bitext", "split": "test", "metric": "margin_f1", "value": 0.5, "num_examples": 5, "higher_is_better": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": [score]}))
    assert "missing" not in outputs.report()
    table = markdown_table(outputs, "bitext")
    assert [line[:1] + line[-1:] for line in table] == [
        ["split", "accuracy_forward (higher)"],
        ["test", "0.2000"],
        ["deu", "0.3000"],
    ]
    assert [line[-1] for line in markdown_table(outputs, "bitext, test")] == ["margin_f1 (higher)", "0.5000"]


def test_what_is_judged_beside_the_encoder_is_a_line(outputs):
    for objective in ("mlm", "tlm"):
        outputs.run(objective, 0, 0.2)
        outputs.add_score(metric="bm25_accuracy_forward", value=0.6)
    outputs.report()
    assert markdown_table(outputs, "bitext, test")[-1] == ["BM25", "", "0.6000"]
    outputs.run("tlm", 1, 0.2)
    outputs.add_score(metric="bm25_accuracy_forward", value=0.7)  # on other data
    outputs.report()
    assert markdown_table(outputs, "bitext, test")[0][-1] == "bm25_accuracy_forward (higher)"


def test_models_that_were_given_are_called_by_their_folder(outputs):
    other = {"sts": {"_target_": "S", "_name_": "similarity", "name": "sts"}}
    for model, length in (("tiny", 128), ("/models/all-MiniLM-L6-v2", 256), ("outputs/stages/pretrain-tlm-0123/encoder", 256)):
        for tasks in (bitext(max_length=length), other):
            outputs.run("mlm", 0, 0.2, tasks=tasks)
            path = max((outputs.folder / "runs").glob("*/summary.json"))
            summary = json.loads(path.read_text())
            if tasks is other:
                summary["scores"][0]["task"] = "sts"
            if model != "tiny":
                summary["config"]["model"] = {"_target_": "P", "_name_": "pretrained", "_version_": 1, "source": model}
                summary["config"] |= {"chain": [], "stages": {}}
            path.write_text(json.dumps(summary))
    assert "task.bitext.max_length" in outputs.report()
    # The length goes along with the model, so that it makes no rows beside those of the other task.
    rows = outputs.csv()
    assert [row["configuration"].split()[0] for row in rows] == ["model=tiny", "model=all-MiniLM-L6-v2", "model=pretrain-tlm-0123"]
    assert all(row["bitext/test/accuracy_forward"] and row["sts/test/accuracy_forward"] for row in rows)


def test_the_report_says_with_what_it_was_made(outputs):
    for commit in ("0123456789", "abcdef0123"):
        outputs.run("mlm", 0, 0.2)
        path = max((outputs.folder / "runs").glob("*/summary.json"))
        versions = {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"}
        record = {"git": {"commit": commit, "dirty": False}, "versions": versions}
        record["hardware"] = {"machine": "x86_64", "cores": 2, "gpus": None}
        path.write_text(json.dumps(json.loads(path.read_text()) | record))
    text = outputs.report()
    told = "python 3.11.7, torch 2.13.0, transformers 5.23.0, x86_64, 2 cores, no GPU."
    assert f"Made with mlmx at commit 0123456, {told}" in text
    assert f"Made with mlmx at commit abcdef0, {told}" in text
