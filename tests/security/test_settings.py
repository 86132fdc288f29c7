"""What settings may not do: leave their folder, name foreign code, hold a secret."""

import pytest

from mlmx.compose import Command
from mlmx.config import check
from mlmx.errors import UserError
from mlmx.secret import secret_overrides
from tests.config_tree import use_tree
from tests.integration.chains import SECRETS

SECRET = SECRETS["HF_TOKEN"]


@pytest.fixture(autouse=True)
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return use_tree(tmp_path, monkeypatch)


def problems(*overrides, config_dir=None):
    with pytest.raises(UserError) as caught:
        check(Command("run", "run", config_dir), overrides)
    assert SECRET not in str(caught.value)
    found = {}
    for problem in caught.value.problems:
        found[problem.where] = f"{found.get(problem.where, '')} {problem.message}"
    return found


@pytest.mark.parametrize("name", ["../../x", "a/b", "/x", "..", ".x", "", "a\\b", "x y"])
def test_names_that_would_leave_their_folder(name):
    assert "is not valid" in problems(f"name='{name}'")["name"]
    assert "is not valid" in problems(f"chain=['{name}']")["chain.0"]


def test_names_of_tasks_and_components_that_would_leave_their_folder(tmp_path):
    folder = tmp_path / "own" / "experiment"
    folder.mkdir(parents=True)
    (folder / "bad.yaml").write_text(
        """# @package _global_
task:
  ../../x: {_target_: plug.Bitext, _version_: 1}
corpus:
  _name_: ../../y
"""
    )
    found = problems("experiment=bad", config_dir=tmp_path / "own")
    assert "is no name" in found["task.../../x"]


def test_a_secret_in_a_setting():
    assert "holds the value of HF_TOKEN" in problems(f"corpus.path=x{SECRET}")["corpus.path"]
    assert "holds the value of HF_TOKEN" in problems("sweep_metric=a/b/${oc.env:HF_TOKEN}")["sweep_metric"]


@pytest.mark.parametrize("key", ["+hydra.job.env_set.WANDB_API_KEY", "+tracker.api_key", "+corpus.token", "+model.hf_token"])
def test_a_setting_that_is_named_like_a_secret(key):
    assert "looks like a secret" in problems(f"{key}=abcdefghijkl")[key.lstrip("+")]


def test_settings_that_are_named_like_tokens_of_text_are_none():
    check(Command("run", "run"), ["trainer.max_steps=7"])
    assert not list(secret_overrides(["trainer.batch_tokens=5", "model.tokenizer.vocab_size=5", "model.mask_token=x", "a.key=1"]))
