"""The commands of docs/clusters.md are understood: every option and setting in them exists and has a valid value."""

import re
import shlex
from pathlib import Path

import pytest

from mlmx.compose import Command
from mlmx.config import check
from mlmx.errors import UserError

ROOT = Path(__file__).parents[1]
VARIABLES = {"$SLURM_NNODES": "2", "$head": "node1"}


def commands():
    text = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8").replace("\\\n", " ")
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.removeprefix("srun ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("mlmx ")]


def test_weights_are_divided_among_processes_that_there_are():
    def shards(*overrides):
        return check(Command("run", "run"), list(overrides), multirun=False)

    shards("parallel.num_processes=4", "parallel.num_shards=2")
    shards("parallel.num_processes=2", "parallel.num_nodes=2", "parallel.rendezvous=a:1", "parallel.num_shards=4")
    with pytest.raises(UserError, match="3 does not divide the 4 processes"):
        shards("parallel.num_processes=4", "parallel.num_shards=3")


def test_there_are_some():
    assert len(commands()) == 4


@pytest.mark.parametrize("line", commands())
def test_it_is_understood(line, tmp_path, monkeypatch):
    if "submitit" in line:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.chdir(tmp_path)
    for name in ("train.en", "train.de"):
        Path(name).write_text("a b c\n")
    _, name, *words = shlex.split(line)
    multirun = "-m" in words
    checked = check(Command(name, name), [word for word in words if word != "-m"], multirun=multirun)
    assert len(checked.configs) == (9 if multirun else 1)
