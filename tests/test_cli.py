from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlmx import cli, compose, config, listing
from mlmx.errors import UserError
from tests.config_tree import use_tree

ROOT = Path(__file__).parents[1]


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """A tree of configs, and a chain that records what it is given."""
    use_tree(tmp_path, monkeypatch)
    stub = types.ModuleType("mlmx.driver.chain")
    stub.runs, stub.planned, stub.previewed = [], [], []
    stub.run = lambda frozen, **more: stub.runs.append((frozen, more)) or 0.5
    stub.plan = stub.planned.append
    stub.preview = lambda frozen, num_examples: stub.previewed.append((frozen, num_examples))
    monkeypatch.setitem(sys.modules, "mlmx.driver.chain", stub)
    monkeypatch.setattr("mlmx.driver.chain", stub, raising=False)
    monkeypatch.setattr(cli, "_check_sweep", lambda configs, fresh: None)
    return stub


def invoke(*arguments):
    result = CliRunner().invoke(cli.app, arguments, prog_name="mlmx")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def mlmx(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mlmx", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list", "objectives"]])
def test_imports_nothing_heavy(arguments):
    program = (
        "import sys; sys.argv = ['mlmx', *sys.argv[1:]]\n"
        "from mlmx import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'wandb', 'hydra', 'numpy') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    heavy = told.splitlines()[-1]
    assert heavy == ("['hydra']" if arguments[0] == "list" else "[]")


@pytest.mark.parametrize("command", ["pretrain", "finetune", "eval", "run"])
def test_commands_hand_the_frozen_config_to_the_chain(chain, command):
    assert invoke(command, "seed=4").exit_code == 0
    ((frozen, more),) = chain.runs
    assert frozen["seed"] == 4
    assert frozen["chain"] == (["pretrain"] if command in ("pretrain", "run") else [])
    assert set(frozen["task"]) == {
        "pretrain": set(), "finetune": {"sentiment"}, "eval": {"bitext"}, "run": {"bitext", "sentiment"}
    }[command]  # fmt: skip
    assert more["overrides"] == ["seed=4"]
    assert more["fresh"] is False
    assert more["run_dir"].is_dir()


def test_fresh_means_since_the_command_began(chain):
    invoke("run", "-m", "seed=0,1", "--fresh")
    first, second = (more["fresh"] for _, more in chain.runs)
    assert first == second > 1e9


def test_mistakes_exit_2_with_all_problems_and_no_traceback(chain):
    result = invoke("run", "objectiv=mlm", "seed=-1", "+typo=1")
    assert result.exit_code == 2
    assert chain.runs == []
    assert "objectiv: no such setting or group. Did you mean 'objective'?" in result.stderr
    assert "seed: -1" in result.stderr
    assert "typo" in result.stderr
    assert "Traceback" not in result.stderr


def test_unknown_flags_are_refused_with_the_nearest(chain):
    result = invoke("run", "--multrun", "seed=0,1")
    assert result.exit_code == 2
    assert "--multirun" in result.stderr
    assert invoke("run", "-x").exit_code == 2


def test_sweep(chain):
    assert invoke("run", "--multirun", "objective=mlm,tlm").exit_code == 0
    assert [frozen["stages"]["pretrain"]["objective"]["_name_"] for frozen, _ in chain.runs] == ["mlm", "tlm"]


def test_failed_jobs_of_a_sweep_make_the_exit_code(chain, monkeypatch):
    def run(frozen, **more):
        chain.runs.append(frozen)
        if frozen["seed"] == 1:
            raise RuntimeError("went wrong")

    monkeypatch.setattr(chain, "run", run)
    result = invoke("run", "-m", "seed=0,1,2")
    assert result.exit_code == 1
    assert len(chain.runs) == 3
    assert "1 job(s) failed: 1" in result.stderr


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["-c", "job", "--resolve"], ["--cfg", "job", "--package", "objective"]])
def test_cfg_shows_and_runs_nothing(chain, flags, capfd, tmp_path):
    invoke("run", "objective=tlm", *flags)
    assert chain.runs == []
    assert not (tmp_path / "outputs").exists()


def test_cfg_job_prints_the_config(chain):
    told = invoke("run", "objective=tlm", "objective.mask_ratio=0.3", "corpus=text", "--cfg", "job").stdout
    assert "mask_ratio: 0.3" in told
    assert "path: ???" in told
    assert invoke("run", "objective=tml", "--cfg", "job").exit_code == 2


@pytest.mark.parametrize("info", ["all", "defaults", "searchpath"])
def test_info(chain, info):
    assert invoke("run", "--info", info).exit_code == 0
    assert chain.runs == []


def test_info_and_resolve_are_checked(chain):
    assert "searchpath" in invoke("run", "--info", "serchpath").stderr
    assert invoke("run", "--resolve").exit_code == 2
    assert cli._with_default_info(["run", "--info"]) == ["run", "--info", "all"]
    assert cli._with_default_info(["run", "-i", "plugins", "a=b"]) == ["run", "-i", "plugins", "a=b"]


def test_from_takes_any_path(chain, tmp_path):
    stage = tmp_path / "it's a=stage, [1]"
    (stage / "encoder").mkdir(parents=True)
    assert invoke("eval", "--from", str(stage)).exit_code == 0
    assert chain.runs[-1][0]["model"]["source"] == str(stage / "encoder")
    assert chain.runs[-1][0]["model"]["_name_"] == "pretrained"
    invoke("eval", "--from", "some/hub-name", "model.revision=abc")
    assert chain.runs[-1][0]["model"]["source"] == "some/hub-name"
    assert chain.runs[-1][0]["model"]["revision"] == "abc"


def test_from_refuses_what_has_no_encoder(chain, tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "config.yaml").write_text("")
    assert "without an encoder" in invoke("eval", "--from", "stage").stderr
    assert "leave one out" in invoke("eval", "--from", "x", "model=tiny").stderr


def test_plan_and_preview(chain):
    assert invoke("plan", "objective=tlm").exit_code == 0
    assert chain.planned[0]["stages"]["pretrain"]["objective"]["_name_"] == "tlm"
    assert invoke("preview", "objective=tlm", "-n", "2").exit_code == 0
    assert chain.previewed[0][1] == 2
    assert chain.runs == []


def test_report_needs_outputs(tmp_path):
    result = invoke("report", str(tmp_path / "nowhere"))
    assert result.exit_code == 2
    assert "no such folder" in result.stderr


def test_list_reads_docstrings_and_comments(chain, tmp_path):
    told = invoke("list", "objectives").stdout.splitlines()
    # Two options share the class: the YAML's comment tells them apart, where there is one.
    assert told == ["lem_mono  Masks tokens.", "lem_para", "mlm       Masked.", "tlm"]
    own = tmp_path / "own" / "task"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package task.mine\n# Mine.\n_target_: nowhere.Mine\n")
    assert "mine       Mine." in invoke("list", "tasks", "--config-dir", str(tmp_path / "own")).stdout
    assert "Did you mean 'objectives'" in invoke("list", "objektives").stderr


def test_list_tells_of_a_task_where_its_data_come_from(chain, tmp_path):
    (tmp_path / "task").mkdir()
    path = tmp_path / "task" / "mine.yaml"
    about = "_about_: {source: a paper, licence: CC0, metric: loss, direction: lower}\n"
    path.write_text(f"# @package task.mine\n# Mine.\n_target_: nowhere.Mine\n{about}")
    told = invoke("list", "tasks", "--config-dir", str(tmp_path)).stdout
    assert "mine       Mine. Main score: loss (lower is better). Data: a paper; licence: CC0.\n" in told
    path.write_text("# Mine.\n_target_: nowhere.Mine\n_about_: {source: '', metric: 3, direction: up, license: CC0}\n")
    result = invoke("list", "tasks", "--config-dir", str(tmp_path))
    assert result.exit_code == 2
    for field in ("source", "licence", "metric", "direction", "license"):
        assert f"mine._about_.{field}: " in result.stderr


def test_summary_of_missing_classes():
    assert listing.summary_of("mlmx.errors.Problem") == "One mistake in what the user gave."
    assert listing.summary_of("mlmx.errors.Nothing") == ""
    assert listing.summary_of("mlmx.nowhere.Nothing") == ""
    assert listing.summary_of("no_such_package.Nothing") == ""


@pytest.mark.parametrize("kind", sorted(listing.KINDS))
def test_every_listed_thing_has_a_line(kind):
    for option in listing.options(kind, [compose.conf_dir()]):
        assert option.summary, option.name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["obj"], {"objective=", "objective."}),
        (["objective", "="], {"mlm", "tlm", "lem_mono", "lem_para"}),
        (["objective", "=", "lem"], {"lem_mono", "lem_para"}),
        (["objective", "=", "mlm,t"], {"mlm,tlm"}),
        (["task", "=", "[bitext,se"], {"[bitext,sentiment"}),
        (["trainer", "@", "task.sentiment.trainer", "=", "f"], {"finetune"}),
        (["objective", "=", "tlm", "objective.r"], {"objective.reset_positions=true"}),
        (["parallel.num_p"], {"parallel.num_processes=1"}),
        (["-m", "se"], {"seed=0"}),
        (["--mult"], {"--multirun"}),
    ],
)
def test_bash_completion(chain, monkeypatch, capsys, line, expected):
    words = ["mlmx", "run", *line]
    monkeypatch.setenv("_MLMX_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))  # as bash has them, broken at =, : and @
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit):
        cli.main()
    assert set(capsys.readouterr().out.split()) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [("mlmx run objective=t", "objective=tlm"), ("mlmx eval seed=1 task=b", "task=bitext"), ("mlmx ru", "run")],
)
def test_fish_completion(chain, monkeypatch, capsys, line, expected):
    monkeypatch.setenv("_MLMX_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    with pytest.raises(SystemExit):
        cli.main()
    assert expected in capsys.readouterr().out


def test_completion_script_is_shown():
    told = mlmx("--show-completion", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert told.returncode in (0, 2)


def test_python_m_mlmx_and_the_real_configs():
    told = mlmx(
        "run", "experiment=lem_vs_tlm", "objective@stages.para.objective=tlm", "stages.para.trainer.max_steps=3", "--cfg", "job"
    )
    assert told.returncode == 0, told.stderr
    told = mlmx("run", "objektive=mlm")
    assert told.returncode == 2
    assert "'objective'" in told.stderr


def test_a_setting_that_is_refused_leaves_no_run(tmp_path):
    told = mlmx("run", "objective.mask_ratio=7", f"outputs={tmp_path}")
    assert told.returncode == 2
    assert told.stderr.startswith("error: objective.mask_ratio: 7 is not valid")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    "group", ["model", "objective", "annotator", "corpus", "trainer", "task", "parallel", "tracker", "experiment"]
)
def test_every_real_option_composes(group):
    options = sorted(file.stem for file in (compose.conf_dir() / group).glob("*.yaml"))
    told: list[str] = []
    try:
        checked = config.check(compose.Command("run", "run"), [f"{group}={','.join(options)}"], multirun=True)
    except UserError as error:
        told = [str(problem) for problem in error.problems if "must be given" not in str(problem)]
    else:
        assert len(checked.configs) == len(options)
    assert told == []


@pytest.mark.parametrize("command", ["run", "plan", "preview"])
def test_outputs_that_cannot_be_written_to_are_refused(chain, tmp_path, command):
    (tmp_path / "file").write_text("")
    result = invoke(command, "outputs=file/results")
    assert result.exit_code == 2
    assert f"outputs: {tmp_path}/file/results cannot be written to" in result.stderr
    assert not chain.runs + chain.planned + chain.previewed


def test_list_shows_a_comment_of_several_lines_as_one(chain, tmp_path):
    own = tmp_path / "own" / "task"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package task.mine\n# Mine,\n# and long.\n_target_: nowhere.Mine\n# no more\n")
    assert "Mine, and long.\n" in invoke("list", "tasks", "--config-dir", str(tmp_path / "own")).stdout


def test_what_cannot_be_exported_is_told(tmp_path):
    result = invoke("export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "error: stage: " in result.stderr
    assert "is no directory of a stage" in result.stderr
    assert "'--pooling'" in invoke("export", str(tmp_path), "--out", str(tmp_path / "out"), "--pooling", "median").stderr
