"""The configs that mlmx comes with."""

import re

import pytest
import yaml

from mlmx.compose import Command, conf_dir
from mlmx.config import check
from mlmx.errors import UserError


@pytest.mark.parametrize("objective", ["mlm", "tlm"])
def test_selecting_a_stages_option_leaves_nothing_of_the_one_it_replaces(objective):
    line = ["experiment=lem_vs_tlm", f"objective@stages.para.objective={objective}"]
    node = check(Command("run", "run", None), line).configs[0]["stages"]["para"]["objective"]
    own = yaml.safe_load((conf_dir() / "objective" / f"{objective}.yaml").read_text(encoding="utf-8"))
    assert node == {**own, "_name_": objective}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("task.sentiment.trainer.max_length=64", "task.sentiment.trainer.max_length: has no effect"),
        ("task.sentiment._about_.direction=up", "task.sentiment._about_.direction: Input should be 'higher' or 'lower'"),
        ("trainer.max_length=null", "trainer.max_length: must be given"),
        ("plugins=[no_such_package]", "plugins: there is no package 'no_such_package'"),
    ],
)
def test_settings_without_effect_are_refused(override, told):
    with pytest.raises(UserError, match=re.escape(told)):
        check(Command("run", "run", None), [override])
