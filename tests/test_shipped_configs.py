"""The configs that mlmx comes with."""

import re

import pytest
import yaml

from mlmx.compose import Command, conf_dir
from mlmx.config import check, component_problems
from mlmx.driver.execute import checked_stages
from mlmx.errors import UserError


@pytest.mark.parametrize("objective", ["mlm", "tlm"])
def test_selecting_a_stages_option_leaves_nothing_of_the_one_it_replaces(objective):
    line = ["experiment=lem_vs_tlm", f"objective@stages.para.objective={objective}"]
    node = check(Command("run", "run", None), line).configs[0]["stages"]["para"]["objective"]
    own = yaml.safe_load((conf_dir() / "objective" / f"{objective}.yaml").read_text(encoding="utf-8"))
    assert node == {**own, "_name_": objective}


def test_an_experiments_corpus_can_be_replaced(tmp_path):
    (tmp_path / "own.txt").write_text("one\n")
    line = ["experiment=clm_then_mlm", "corpus=text", f"corpus.path={tmp_path}/own.txt"]
    config = check(Command("run", "run", None), line).configs[0]
    assert component_problems(config) == []
    own = check(Command("run", "run", None), line[:1]).configs[0]["stages"]["pretrain"]["corpus"]
    assert own["view"] == "monolingual"


def test_what_is_wrong_within_and_between_groups_is_told_at_once(tmp_path):
    (tmp_path / "own.txt").write_text("one\n")
    line = ["objective=alternate", "corpus=text", f"corpus.path={tmp_path}/own.txt", "objective.parts.mlm.ratoi=2"]
    config = check(Command("run", "run", None), [*line, f"outputs={tmp_path}"]).configs[0]
    with pytest.raises(UserError) as caught:
        checked_stages(config)
    assert {problem.where for problem in caught.value.problems} >= {"corpus", "objective.parts.mlm.ratoi"}


@pytest.mark.parametrize(
    ("choice", "key"),
    [("objective=mlm", "objective.mask_ratio"), ("objective=sum", "objective.parts.rts.schedule")],
)
def test_a_schedule_without_a_plus_is_told_how_it_is_typed(choice, key):
    with pytest.raises(UserError) as caught:
        check(Command("run", "run", None), [choice, f"schedule@{key}=linear", f"{key}.start=0.4"])
    (problem,) = caught.value.problems
    assert problem.where == f"schedule@{key}"
    assert problem.message.endswith(f"use +schedule@{key}=linear")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("task.sentiment.trainer.max_length=64", "task.sentiment.trainer.max_length: has no effect"),
        ("task.sentiment._about_.direction=up", "task.sentiment._about_.direction: Input should be 'higher' or 'lower'"),
        ("trainer.max_length=null", "trainer.max_length: must be given"),
        ("objective=electra objective.detection_weight=inf", "objective.detection_weight: inf is not valid: must be finite."),
        ("objective.mask_ratio=nan", "objective.mask_ratio: nan is not valid: must be finite."),
        ("objective=sum objective.parts.rts.weight=inf objective.parts.mlm.weigth=2", "objective.parts.mlm.weigth: "),
        ("trainer.betas=[0.9,nan]", "trainer.betas.1: nan is not valid: must be finite."),
        ("plugins=[no_such_package]", "plugins: there is no package 'no_such_package'"),
    ],
)
def test_settings_without_effect_are_refused(override, told):
    with pytest.raises(UserError, match=re.escape(told)):
        check(Command("run", "run", None), override.split())
