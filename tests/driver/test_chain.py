"""The chain end to end, with a worker that only pretends."""

import json
import os
import subprocess
import time
from contextlib import nullcontext

import pytest

from mlmx.driver import chain, command, execute
from mlmx.driver.command import StageFailedError
from mlmx.driver.directories import place
from mlmx.driver.stages import advice
from mlmx.errors import UserError
from tests.driver.configs import ROOT, corpus, driver_command, frozen

FAKE = "tests.driver.fake_worker"


@pytest.fixture(autouse=True)
def _made_up_components(monkeypatch):
    monkeypatch.setattr(execute, "check", lambda placed, config, fresh=False: None)


def run(tmp_path, config, name="run", **options):
    return chain.run(config, run_dir=tmp_path / name, overrides=["seed=0"], worker=FAKE, **options)


def starts(tmp_path):
    """Return stage kind-name -> how often workers were started on it."""
    counts = {}
    for file in sorted((tmp_path / "outputs" / "stages").glob("*/starts")):
        counts[file.parent.name.rsplit("-", 1)[0]] = len(file.read_text().splitlines())
    return counts


def test_runs_each_stage_once_and_sums_up(tmp_path, capsys):
    config = frozen(tmp_path / "outputs", sweep_metric="bitext/test/f1")
    assert run(tmp_path, config) == 0.5
    expected = {"eval-bitext": 1, "prepare-microworld": 1, "prepare-tokenizer": 1, "pretrain-mlm": 1}
    assert starts(tmp_path) == expected
    assert "fake worker 0 at work" in capsys.readouterr().out
    assert run(tmp_path, config, "again") == 0.5
    assert starts(tmp_path) == expected
    assert capsys.readouterr().out.count(": reused\n") == 4
    summary = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert [stage["reused"] for stage in summary["stages"]] == [True] * 4
    assert [stage["kind"] for stage in summary["stages"]] == ["prepare", "prepare", "pretrain", "eval"]
    assert (summary["scores"][0]["value"], summary["scores"][0]["main"]) == (0.5, False)
    # What is said of a task makes no other stage of it.
    config["task"]["bitext"]["_about_"] = {"source": "a paper", "licence": "CC0", "metric": "f1", "direction": "higher"}
    run(tmp_path, config, "told")
    assert starts(tmp_path) == expected
    assert json.loads((tmp_path / "told" / "summary.json").read_text())["scores"][0]["main"] is True
    for stage in summary["stages"]:
        assert (tmp_path / "outputs" / "stages" / stage["dir"] / "result.json").exists()


def test_a_sweep_shares_equal_stages(tmp_path):
    run(tmp_path, frozen(tmp_path / "outputs"))
    run(tmp_path, frozen(tmp_path / "outputs", seed=1))
    assert len(list((tmp_path / "outputs" / "stages").glob("prepare-*"))) == 2
    assert len(list((tmp_path / "outputs" / "stages").glob("pretrain-*"))) == 2
    assert len(list((tmp_path / "outputs" / "stages").glob("eval-*"))) == 2


def test_reuse_under_another_name(tmp_path, capsys):
    run(tmp_path, frozen(tmp_path / "outputs"))
    config = frozen(tmp_path / "outputs", chain=["first"])
    config["stages"]["first"] = config["stages"].pop("pretrain")
    run(tmp_path, config, "again")
    assert starts(tmp_path)["pretrain-mlm"] == 1
    assert not list((tmp_path / "outputs" / "stages").glob("pretrain-first-*"))


def test_fresh_sets_aside_and_builds_anew(tmp_path):
    config = frozen(tmp_path / "outputs")
    run(tmp_path, config)
    run(tmp_path, config, "again", fresh=time.time())
    assert set(starts(tmp_path).values()) == {1}
    assert len(list((tmp_path / "outputs" / "replaced").glob("*/result.json"))) == 4


def test_reuse_under_other_code_is_said(tmp_path, capsys, monkeypatch):
    config = frozen(tmp_path / "outputs")
    run(tmp_path, config)
    capsys.readouterr()
    monkeypatch.setattr(execute, "source_hash", lambda: "other")
    run(tmp_path, config, "again")
    assert capsys.readouterr().out.count("made under other code") == 4


def test_a_failed_stage_is_tried_again(tmp_path):
    config = frozen(tmp_path / "outputs", task__bitext__behaviour="crash")
    with pytest.raises(StageFailedError, match=r"(?s)exit code 1.*something went badly wrong.*log\.txt"):
        run(tmp_path, config)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "exit code 1" in summary["error"]["message"]
    assert len(summary["stages"]) == 3
    (tmp_path / "outputs" / "stages" / "mended").touch()
    run(tmp_path, config)
    assert starts(tmp_path) == {"eval-bitext": 2, "prepare-microworld": 1, "prepare-tokenizer": 1, "pretrain-mlm": 1}


def test_a_users_mistake_found_by_the_worker(tmp_path):
    config = frozen(tmp_path / "outputs", stages__pretrain__objective__behaviour="user_error")
    with pytest.raises(UserError, match=r"objective\.mask_ratio: is nonsense"):
        run(tmp_path, config)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["error"]["problems"][0]["where"] == "objective.mask_ratio"


def test_an_unknown_sweep_metric_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'bitext/test/f1'"):
        run(tmp_path, frozen(tmp_path / "outputs", sweep_metric="bitext/test/f2"))


def test_a_finished_chain_imports_nothing_heavy(tmp_path):
    config = frozen(tmp_path / "outputs")
    run(tmp_path, config)
    done = subprocess.run(
        driver_command(config, tmp_path / "again"), cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "HEAVY []" in done.stdout
    assert done.stdout.count(": reused\n") == 4


def test_equal_chains_side_by_side_do_each_stage_once(tmp_path):
    config = frozen(tmp_path / "outputs", stages__pretrain__objective__behaviour="brief")
    drivers = [
        subprocess.Popen(driver_command(config, tmp_path / f"run{i}"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    outputs = [driver.communicate(timeout=60)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0, 0], outputs
    assert set(starts(tmp_path).values()) == {1}
    assert any("waits for pid" in output and f"on {os.uname().nodename}" in output for output in outputs)


def test_plan_says_what_is_new(tmp_path, capsys, monkeypatch):
    run(tmp_path, frozen(tmp_path / "outputs"))
    capsys.readouterr()
    costs = [{"num_parameters": 1234567, "tokens": None, "steps": 10, "memory_bytes": 3 * 2**20, "budget": "max_steps=10"}]
    monkeypatch.setattr(command, "run_attached", lambda *_, **__: json.dumps(costs))
    chain.plan(frozen(tmp_path / "outputs", stages__pretrain__objective__rate=0.3))
    out = capsys.readouterr().out
    assert "objective.rate: 0.15 -> 0.3" in out
    assert out.count("finished") >= 2
    assert "1,234,567" in out
    assert "3 MiB" in out
    assert "max_steps=10" in out
    assert starts(tmp_path)["pretrain-mlm"] == 1
    (changed,) = place(chain.stages_of(frozen(tmp_path / "outputs", seed=7)), tmp_path / "outputs")[-2:-1]
    changed.directory.path.mkdir(parents=True)
    changed.directory.write_status("running", launch="killed outright")
    chain.plan(frozen(tmp_path / "outputs", seed=7))
    assert "interrupted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective___needs_annotation_": True}, "annotator: mlm needs words"),
        (
            {
                "objective___needs_annotation_": True,
                "annotator": {"_needs_gold_": True},
                "corpus": {**corpus("news"), "_gold_": False},
            },
            r"annotator: mlm needs words .* the corpus news has no gold tags",
        ),
        (
            {"objective___needs_dropout_": {"rate": 0.15}, "trainer__dropout": 0.0},
            r"trainer.dropout: is 0, and mlm tells the two views of a row apart by dropout",
        ),
        ({"objective___needs_parallel_": True, "corpus": {**corpus("news"), "_parallel_": False}}, "corpus: mlm needs pairs"),
        (
            {"objective___needs_parallel_": {"rate": 0.15}, "corpus": {**corpus("news"), "_parallel_": False}},
            "corpus: mlm needs pairs",
        ),
        (
            {"objective__rate": {"_target_": "mlmx.x.Linear", "_follows_progress_": True}, "trainer__max_steps": None},
            r"objective\.rate: follows the progress of the training",
        ),
    ],
)
def test_groups_that_contradict_each_other(tmp_path, changes, told):
    config = frozen(tmp_path / "outputs", **{f"stages__pretrain__{key}": value for key, value in changes.items()})
    with pytest.raises(UserError, match=told):
        chain.stages_of(config)


def test_groups_that_fit_by_their_settings(tmp_path):
    schedule = {"_target_": "mlmx.x.Linear", "_follows_progress_": True}
    monolingual = {**corpus("news"), "_parallel_": False}
    for changes in (
        {"objective___needs_parallel_": {"rate": 0.2}, "corpus": monolingual},
        {"objective__rate": schedule},
        # The weight of a term is looked up when its batch is there.
        {"objective__schedule": schedule, "trainer__max_steps": None},
    ):
        config = frozen(tmp_path / "outputs", **{f"stages__pretrain__{key}": value for key, value in changes.items()})
        assert chain.stages_of(config)


@pytest.mark.parametrize(
    ("drops", "task", "told"),
    [
        (True, {"lexical": {"num_entries": 5}}, r"task\.bitext\.lexical: mlm leaves no language-model head"),
        ({"rate": 0.15}, {"lexical": {"num_entries": 5}}, r"task\.bitext\.lexical"),
        (False, {"width": 16}, r"task\.bitext\.width: 16 is more than the width of the encoder, 8"),
    ],
)
def test_tasks_that_ask_more_of_vectors_than_there_will_be(tmp_path, drops, task, told):
    config = frozen(tmp_path / "outputs", stages__pretrain__objective___drops_head_=drops, model__hidden_size=8)
    assert chain.stages_of(config)
    config["task"]["bitext"] |= task
    with pytest.raises(UserError, match=told):
        chain.stages_of(config)
    if drops:
        objective = config["stages"]["pretrain"]["objective"]
        keeps = {**objective, "_drops_head_": {"rate": 0.3}}
        for made_of, told in [
            ({"objective": objective}, True),
            ({"parts": {"a": {"objective": objective}, "b": None}}, True),
            ({"parts": {"a": {"objective": objective}, "b": {"objective": keeps}}}, False),
            (keeps, False),
        ]:
            config["stages"]["pretrain"]["objective"] = {"_target_": "mlmx.x.Whole", "_version_": 1, **made_of}
            with pytest.raises(UserError, match=r"task\.bitext\.lexical") if told else nullcontext():
                chain.stages_of(config)


@pytest.mark.parametrize(
    ("given", "has_none"),
    [
        ({"_parallel_": {"view": "parallel"}, "view": "monolingual"}, True),
        ({"_parallel_": {"view": "parallel"}, "view": "parallel"}, False),
        ({"_parallel_": None}, False),
        ({"_parallel_": None, "parts": {"a": {"corpus": {"_parallel_": False}, "weight": 1.0}}}, True),
        ({"_parallel_": None, "parts": {"a": {"corpus": {"_parallel_": True}, "weight": 1.0}}}, False),
        ({"_parallel_": None, "parts": {"a": None, "b": {"corpus": "text"}}}, False),
    ],
)
def test_corpora_that_are_known_to_have_no_pairs(tmp_path, given, has_none):
    changes = {"stages__pretrain__objective___needs_parallel_": True, "stages__pretrain__corpus": {**corpus("news"), **given}}
    with pytest.raises(UserError, match="corpus: mlm needs pairs") if has_none else nullcontext():
        chain.stages_of(frozen(tmp_path / "outputs", **changes))


def test_a_sweep_metric_of_no_task_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match=r"sweep_metric: .*Did you mean 'bitext'"):
        chain.stages_of(frozen(tmp_path / "outputs", sweep_metric="bitxt/test/f1"))


def test_what_says_nothing_of_the_encoder_is_pointed_out(tmp_path):
    assert advice(frozen(tmp_path)) == []
    assert "random weights" in advice(frozen(tmp_path, chain=[]))[0]
    trained = frozen(tmp_path, model__tokenizer=None, stages__pretrain__trainer__learning_rate=1e-3)
    assert "trainer=continued" in advice(trained)[0]
    microworld = {"data": {"_world_": "microworld", "seed": 0}}
    assert "no corpus of this chain" in advice(frozen(tmp_path, task={"bitext": microworld}))[0]
    world = {"_world_": "microworld", "seed": 0}
    assert advice(frozen(tmp_path, task={"bitext": microworld}, stages__pretrain__corpus={"parts": {"a": world}})) == []
    assert len(advice(frozen(tmp_path, task={"bitext": microworld}, stages__pretrain__corpus={**world, "seed": 1}))) == 1


def test_settings_are_checked_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(UserError) as caught:
        chain.run(frozen(tmp_path / "outputs"), run_dir=tmp_path / "run", overrides=[], worker=FAKE)
    places = {problem.where for problem in caught.value.problems}
    assert {"objective._target_", "corpus._target_", "trainer._target_", "model._target_", "task.bitext._target_"} <= places
    assert not (tmp_path / "outputs" / "stages").exists()
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"objective\._target_"):
        chain.plan(frozen(tmp_path / "outputs"))
