"""The configs that mlmx comes with."""

import pytest
import yaml

from mlmx import config


@pytest.mark.parametrize("objective", ["mlm", "tlm"])
def test_selecting_a_stages_option_leaves_nothing_of_the_one_it_replaces(objective):
    line = ["experiment=lem_vs_tlm", f"objective@stages.para.objective={objective}"]
    node = config.check(config.Command("run", "run", None), line).configs[0]["stages"]["para"]["objective"]
    own = yaml.safe_load((config.conf_dir() / "objective" / f"{objective}.yaml").read_text(encoding="utf-8"))
    assert node == {**own, "_name_": objective}
