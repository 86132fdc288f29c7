from __future__ import annotations

import json

import pytest

from mlmx.compose import Command, quoted
from mlmx.config import check
from mlmx.errors import UserError
from tests.config_tree import use_tree


@pytest.fixture(autouse=True)
def tree(tmp_path, monkeypatch):
    return use_tree(tmp_path, monkeypatch)


def frozen(*overrides, command="run", **flags):
    return check(Command(command, command), overrides, **flags).configs[0]


def problems(*overrides, command="run", **flags):
    with pytest.raises(UserError) as caught:
        check(Command(command, command), overrides, **flags)
    return {problem.where: problem for problem in caught.value.problems}


def test_frozen_config_has_every_stage_with_complete_named_nodes(tmp_path):
    result = frozen("objective=tlm", "seed=3")
    assert result["seed"] == 3
    assert result["chain"] == ["pretrain"]
    stage = result["stages"]["pretrain"]
    assert stage["objective"] == {
        "_target_": "plug.Tlm", "_version_": 1, "mask_ratio": 0.15, "reset_positions": True, "_name_": "tlm"
    }  # fmt: skip
    assert stage["annotator"]["_name_"] == "gold"
    assert stage["trainer"]["_name_"] == "pretrain"
    assert result["task"]["sentiment"]["trainer"]["_name_"] == "finetune"
    assert result["task"]["bitext"]["_name_"] == "bitext"
    assert result["model"]["_name_"] == "tiny"
    assert result["outputs"] == str(tmp_path / "outputs")
    json.dumps(result)


def test_a_value_that_needs_quotes_is_shown_with_them(tmp_path):
    (problem,) = problems("outputs=ü n/x").values()
    assert problem.message.endswith("""Quote the value: 'outputs="ü n/x"'""")
    assert frozen('outputs="ü n/x"')["outputs"] == str(tmp_path / "ü n/x")
    assert "Quote" not in problems("chain=[a")["chain=[a"].message


def test_all_mistakes_are_told_at_once():
    found = problems(
        "objective=mml", "seed=-1", "objective.mask_rato=1", "mask_ratio=3", "objective.mask_ratio=7", "+typo=1", "foo", "a=[1",
        "trainer.max_steps=abc", "paralel.num_processes=2", "tracker.mode=onlin", "corpsu=text",
    )  # fmt: skip
    assert found["objective"].nearest == "mlm"
    assert "lem_mono" in found["objective"].message
    assert found["objective.mask_rato"].nearest == "objective.mask_ratio"
    assert found["mask_ratio"].nearest == "objective.mask_ratio"
    assert found["paralel.num_processes"].nearest == "parallel.num_processes"
    assert found["tracker.mode"].nearest == "online"
    assert found["corpsu"].nearest == "corpus"
    assert "7" in found["objective.mask_ratio"].message
    assert {"seed", "typo", "foo", "a=[1", "trainer.max_steps"} < set(found)


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("+typo=1", "typo"),
        ("++typo=1", "typo"),
        ("+objective.typo=1", "objective.typo"),
        ("++trainer.max_stps=1", "trainer.max_stps"),
        ("+parallel.num_proceses=1", "parallel.num_proceses"),
        ("+stages.pretrain.objective.typo=1", "stages.pretrain.objective.typo"),
        ("+stages.pretrain.corpsu.size=1", "stages.pretrain.corpsu"),
        ("stages.pretain.trainer.max_steps=1", "stages.pretain"),
        ("+foo@bar=mlm", "foo"),
        ("+objective@foo=mlm", "foo"),
        ("objective@foo=mlm", "objective@foo"),
        ("hydra.jb.chdir=true", "hydra.jb.chdir"),
        ("annotator.x=1", "annotator.x"),
        ("objective={mask_rato: 1}", "objective"),
        ("model/big=x", "model/big"),
        ("chain=[a,a]", "chain"),
        ("chain=pretrain", "chain"),
        ("seed=1.5", "seed"),
        ("seed=true", "seed"),
        ("name=a/b", "name"),
        ("tracker.mode=onlin", "tracker.mode"),
        ("parallel.num_processes=0", "parallel.num_processes"),
        ("sweep_metric=f1", "sweep_metric"),
        ("~model", "model"),
        ("seed=1,2", "seed"),
        ("seed=???", "seed"),
        ("objective.mask_ratio=${nothing}", "objective.mask_ratio"),
        ("objective.mask_ratio=nan", "objective.mask_ratio"),
        ("parallel.peak_flops=inf", "parallel.peak_flops"),
    ],
)
def test_mistakes(override, where):
    assert where in problems(override)


def test_numbers_that_are_not_finite_are_told_with_everything_else():
    found = problems("objective=mlm", "+objective.caps.LOC=inf", "+objective.caps.ORG=x", "seed=-1")
    assert found["objective.caps.LOC"].message == "inf is not valid: must be finite."
    assert {"objective.caps.ORG", "seed"} < set(found)


def test_a_choice_that_cannot_be_made_is_told_by_itself_with_what_to_type():
    found = problems(
        "objective=tlm", "objective@task.bitext.mine=mlm", "task.bitext.mine.mask_ratio=1", "corpus=microworld", "seed=-1"
    )
    assert found.keys() == {"objective@task.bitext.mine", "seed"}
    told = found["objective@task.bitext.mine"].message
    assert told.startswith("Could not override 'objective@task.bitext.mine'.")
    assert told.endswith("To append to your default list use +objective@task.bitext.mine=mlm")


def test_mappings_that_are_settings_are_open():
    assert frozen("objective.caps.LOC=3")["stages"]["pretrain"]["objective"]["caps"] == {"PER": 1, "LOC": 3}
    assert frozen("+objective.caps.LOC=3")["stages"]["pretrain"]["objective"]["caps"] == {"PER": 1, "LOC": 3}


@pytest.mark.parametrize("task", ["task=[bitext,sentiment]", "task=all", "task=[sentiment,bitext]"])
def test_several_tasks(task):
    assert set(frozen(task)["task"]) == {"bitext", "sentiment"}


def test_one_task_and_none():
    assert set(frozen("task=bitext")["task"]) == {"bitext"}
    assert frozen("task=[]")["task"] == {}
    assert frozen(command="pretrain")["task"] == {}


def test_task_without_header_names_the_file(tree):
    (tree / "task" / "bitext.yaml").write_text("_target_: plug.Task\nname: bitext\n")
    assert str(tree / "task" / "bitext.yaml") in problems("task=[bitext,sentiment]")


def test_stages_inherit_replace_and_merge(tmp_path):
    (tmp_path / "news.txt").write_text("a\n")
    stages = frozen(
        "experiment=lem_vs_tlm", "corpus@stages.para.corpus=text", "stages.para.corpus.path=news.txt",
        "stages.para.trainer.max_steps=5", "trainer.log_every_steps=2", "objective@stages.para.objective=tlm",
    )["stages"]  # fmt: skip
    assert list(stages) == ["mono", "para"]
    assert stages["mono"]["objective"]["_name_"] == "lem_mono"
    assert stages["para"]["objective"]["_name_"] == "tlm"
    assert stages["para"]["corpus"] == {
        "_target_": "plug.Text", "_inputs_": ["path"], "path": str(tmp_path / "news.txt"), "_name_": "text"
    }  # fmt: skip
    assert stages["mono"]["trainer"]["max_steps"] == 10
    assert stages["para"]["trainer"] == stages["mono"]["trainer"] | {"max_steps": 5}
    assert stages["para"]["trainer"]["log_every_steps"] == 2
    assert stages["para"]["annotator"]["_name_"] == "gold"


def test_root_group_that_no_stage_uses():
    assert problems("experiment=lem_vs_tlm", "objective=mlm")["objective"].nearest == "stages.mono.objective"
    assert "objective.mask_ratio" in problems("experiment=lem_vs_tlm", "objective.mask_ratio=0.1")
    assert "trainer.max_steps" not in frozen("experiment=lem_vs_tlm", "trainer.max_steps=3")
    assert "objective" in problems("objective=tlm", command="eval")
    assert problems("trainer.max_steps=3", command="finetune")["trainer.max_steps"].nearest == "task.sentiment.trainer.max_steps"


def test_commands_leave_out_what_they_do_not_do():
    assert frozen("experiment=lem_vs_tlm", command="eval")["chain"] == []
    assert frozen("experiment=demo", command="pretrain")["task"] == {}
    assert "task" in problems("task=bitext", command="pretrain")
    assert "chain" in problems("chain=[a]", command="finetune")


def test_values_that_must_be_given_count_only_where_they_are_used(tree):
    lines = [
        "# @package _global_",
        "defaults:",
        "  - /corpus@stages.a.corpus: microworld",
        "  - override /corpus: text",
        "chain: [a]",
    ]
    (tree / "experiment" / "own_corpora.yaml").write_text("\n".join(lines))
    assert "corpus.path" in problems("corpus=text")
    assert "stages.para.corpus.path" in problems("experiment=lem_vs_tlm", "corpus@stages.para.corpus=text")
    # Both stages bring their own corpus, so the root's missing path is nobody's concern.
    whole = frozen("experiment=own_corpora")
    assert whole["corpus"]["path"] == "???"
    assert "model.source" in problems("model=pretrained")


def test_inputs_that_an_experiment_refers_to_must_be_given(tree, tmp_path):
    lines = [
        "# @package _global_",
        "defaults: [{override /corpus: text}]",
        "inputs: {data: '???', more: '???'}",
        "corpus: {path: '${inputs.data}/a'}",
    ]
    (tree / "experiment" / "with_inputs.yaml").write_text("\n".join(lines))
    (tmp_path / "a").write_text("text\n")
    assert "must be given" in problems("experiment=with_inputs")["inputs.data"].message
    result = frozen("experiment=with_inputs", f"inputs.data={tmp_path}", "inputs.more=x")
    assert result["stages"]["pretrain"]["corpus"]["path"] == str(tmp_path / "a")


def test_files_that_do_not_exist(tmp_path):
    (tmp_path / "news.txt").write_text("a\n")
    found = problems("corpus=text", "corpus.path=new.txt")["corpus.path"]
    assert str(tmp_path / "new.txt") in found.message
    assert found.nearest == str(tmp_path / "news.txt")
    assert frozen("corpus=text", "corpus.path=*.txt")["stages"]["pretrain"]["corpus"]["path"] == str(tmp_path / "*.txt")
    assert frozen("model=pretrained", "model.source=some/hub-name")["model"]["source"] == "some/hub-name"
    (tmp_path / "checkpoint").mkdir()
    assert frozen("model=pretrained", "model.source=checkpoint")["model"]["source"] == str(tmp_path / "checkpoint")


@pytest.mark.parametrize("path", ["a=b", "it's", "a,b", "with space", "back\\slash", "end\\", "[x]{y}", "\\'", "ünï"])
def test_quoted_paths_come_back_as_they_were(path):
    assert frozen("model=pretrained", f"model.source={quoted(path)}")["model"]["source"] == path


def test_sweeps_are_checked_for_each_value():
    checked = check(Command("run", "run"), ["objective=mlm,tlm", "seed=range(0,3)"], multirun=True)
    assert len(checked.configs) == 6
    assert len({json.dumps(each) for each in checked.configs}) == 6
    assert problems("objective=mlm,tml", multirun=True)["objective"].nearest == "tlm"
    assert "seed" in problems("seed=0,-1", multirun=True)
    # A setting that only one of the swept objectives has.
    assert "objective.reset_positions" in problems("objective=tlm,mlm", "objective.reset_positions=true", multirun=True)
    assert "seed" in problems("hydra/sweeper=optuna", "seed=interval(-1,3)", multirun=True)
    assert len(check(Command("run", "run"), ["seed=range(0,70)"], multirun=True).configs) == 70


def test_stage_selections_can_be_swept():
    checked = check(Command("run", "run"), ["experiment=lem_vs_tlm", "objective@stages.para.objective=tlm,lem_para"], multirun=True)
    assert [each["stages"]["para"]["objective"]["_name_"] for each in checked.configs] == ["tlm", "lem_para"]


def test_components_of_another_kind_are_told_with_everything_else():
    found = problems("experiment=lem_vs_tlm", "annotator@stages.para.corpus=gold", "seed=-1")
    assert "it is no Corpus" in found["stages.para.corpus._target_"].message
    assert "seed" in found


def test_own_config_dir(tmp_path):
    own = tmp_path / "own"
    (own / "objective").mkdir(parents=True)
    (own / "objective" / "mine.yaml").write_text("_target_: plug.Mlm\nmask_ratio: 0.5\ncaps: {}\n")
    result = check(Command("run", "run", own), ["objective=mine"]).configs[0]
    assert result["stages"]["pretrain"]["objective"]["mask_ratio"] == 0.5
    with pytest.raises(UserError, match="no such folder"):
        check(Command("run", "run", tmp_path / "nowhere"), [])


def test_a_task_is_called_by_its_place():
    found = problems("task.bitext.name=mine")
    assert "set it to bitext" in found["task.bitext.name"].message
    assert problems("task=[]", "+task@task.second=bitext").keys() == {"task.second.name"}
    assert set(frozen("task=[]", "+task@task.second=bitext", "task.second.name=second")["task"]) == {"second"}
