from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import yaml

from mlmx import jobs
from mlmx.compose import Command
from mlmx.config import check
from mlmx.errors import UserError
from tests.config_tree import use_tree

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def tree(tmp_path, monkeypatch):
    return use_tree(tmp_path, monkeypatch)


def frozen(*overrides):
    return check(Command("run", "run"), overrides).configs[0]


def record(folder, frozen, run_dir, overrides, *, fail=()):
    name = frozen["stages"]["pretrain"]["objective"]["_name_"]
    if name in fail:
        raise RuntimeError(f"{name} went wrong")
    if name == "lem_mono":
        raise UserError(())
    assert run_dir.is_dir()
    text = json.dumps({"run_dir": str(run_dir), "overrides": overrides, "config": frozen, "cwd": str(Path.cwd())})
    (Path(folder) / f"{run_dir.name}.json").write_text(text)
    return float(frozen["seed"]) - frozen["stages"]["pretrain"]["objective"]["mask_ratio"]


def run(tmp_path, *overrides, multirun=False, **options):
    records = tmp_path / "records"
    records.mkdir(exist_ok=True)
    command = Command("run", "run")
    checked = check(command, overrides, multirun=multirun)
    jobs.run_jobs(command, checked, partial(record, str(records), **options), flags=["--multirun"] if multirun else [])
    return [json.loads(file.read_text()) for file in sorted(records.iterdir())]


def litter(tmp_path):
    return {entry.name for entry in tmp_path.iterdir()} - {"conf", "plug.py", "records", "__pycache__"}


def test_single_job(tmp_path):
    (job,) = run(tmp_path, "objective=tlm", "name=one")
    assert job["config"] == frozen("objective=tlm", "name=one")
    assert job["overrides"] == ["objective=tlm", "name=one"]
    assert job["cwd"] == str(tmp_path)
    folder = Path(job["run_dir"])
    assert folder.parent == tmp_path / "outputs" / "runs"
    assert folder.name.endswith("-one")
    assert litter(tmp_path) == {"outputs"}


def test_runs_of_the_same_second_have_their_own_directories(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.time, "strftime", lambda _: "2000-01-01_00-00-00")
    runs = [run(tmp_path)[-1] for _ in range(3)]
    assert len({job["run_dir"] for job in runs}) == 3


def test_sweep_has_a_directory_per_job(tmp_path):
    ran = run(tmp_path, "objective=mlm,tlm", "seed=0,1", multirun=True)
    assert len(ran) == 4
    assert {(job["config"]["stages"]["pretrain"]["objective"]["_name_"], job["config"]["seed"]) for job in ran} == {
        ("mlm", 0), ("mlm", 1), ("tlm", 0), ("tlm", 1)
    }  # fmt: skip
    assert [Path(job["run_dir"]).name[-6:] for job in ran] == ["-run-0", "-run-1", "-run-2", "-run-3"]
    assert {Path(job["run_dir"]).parent for job in ran} == {tmp_path / "outputs" / "runs"}
    assert litter(tmp_path) == {"outputs"}


def test_sweep_goes_on_after_a_failed_job(tmp_path, capfd):
    with pytest.raises(jobs.JobsFailed) as caught:
        run(tmp_path, "objective=mlm,tlm,lem_mono,lem_para", multirun=True, fail=("tlm",))
    assert [failure["job"] for failure in caught.value.failures] == [1, 2]
    assert [failure["user"] for failure in caught.value.failures] == [False, True]
    assert len(list((tmp_path / "records").iterdir())) == 2
    told = capfd.readouterr().err
    assert "job 1 failed: objective=tlm" in told
    assert told.count("tlm went wrong") == 1
    assert told.count("Traceback") == 1
    assert "Error executing job" not in told
    assert len(list((tmp_path / "outputs" / "runs").glob("*-run-?"))) == 2


def test_single_failures_come_out_as_they_are(tmp_path, capfd):
    with pytest.raises(RuntimeError, match="tlm went wrong"):
        run(tmp_path, "objective=tlm", fail=("tlm",))
    assert capfd.readouterr().err == ""
    assert list((tmp_path / "outputs" / "runs").iterdir()) == []


@pytest.mark.slow
def test_joblib_runs_jobs_in_processes(tmp_path, monkeypatch, capfd):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    with pytest.raises(jobs.JobsFailed) as caught:
        run(
            tmp_path,
            "hydra/launcher=joblib",
            "hydra.launcher.n_jobs=2",
            "objective=mlm,tlm,lem_mono,lem_para",
            multirun=True,
            fail=("tlm",),
        )
    assert sorted((failure["job"], failure["user"]) for failure in caught.value.failures) == [(1, False), (2, True)]
    assert len(list((tmp_path / "records").iterdir())) == 2
    assert "tlm went wrong" in capfd.readouterr().err
    assert litter(tmp_path) == {"outputs"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_optuna_gets_its_value_back(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    ran = run(
        tmp_path, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "hydra.sweeper.direction=maximize",
        "seed=choice(1,5)", "objective.mask_ratio=interval(0.1,0.2)", multirun=True,
    )  # fmt: skip
    assert len(ran) == 3
    values = [job["config"]["seed"] - job["config"]["stages"]["pretrain"]["objective"]["mask_ratio"] for job in ran]
    (results,) = (tmp_path / "outputs" / "runs").glob("*/optimization_results.yaml")
    assert float(yaml.safe_load(results.read_text())["best_value"]) == pytest.approx(max(values))
