"""A small tree of configs, so that these tests do not depend on what components there are."""

from __future__ import annotations

import shutil
from pathlib import Path

from mlmx import compose

REAL = Path(__file__).parents[1] / "conf"

FILES = {
    "model/tiny.yaml": "_target_: plug.Model\nwidth: 8\ntokenizer:\n  _target_: plug.Tokenizer\n  size: 5\n",
    "model/pretrained.yaml": "_target_: plug.Pretrained\n_inputs_: [source]\nsource: ???\nrevision: null\n",
    "objective/mlm.yaml": "# Masked.\n_target_: plug.Mlm\n_version_: 1\nmask_ratio: 0.15\ncaps: {PER: 1}\n",
    "objective/tlm.yaml": "_target_: plug.Tlm\n_version_: 1\nmask_ratio: 0.15\nreset_positions: true\n",
    "objective/lem_mono.yaml": "_target_: plug.Mlm\n_version_: 1\nmask_ratio: 0.2\ncaps: {PER: 1}\n",
    "objective/lem_para.yaml": "_target_: plug.Tlm\n_version_: 1\nmask_ratio: 0.2\nreset_positions: false\n",
    "corpus/microworld.yaml": "_target_: plug.World\nsize: 10\n",
    "corpus/microworld_monolingual.yaml": "_target_: plug.World\nsize: 10\n",
    "corpus/text.yaml": "_target_: plug.Text\n_inputs_: [path]\npath: ???\n",
    "annotator/none.yaml": "# @package _global_\nannotator: null\n",
    "annotator/gold.yaml": "_target_: plug.Gold\n",
    "trainer/pretrain.yaml": "_target_: plug.Trainer\nmax_steps: 10\nlog_every_steps: 1\n",
    "trainer/finetune.yaml": "_target_: plug.Trainer\nmax_steps: 3\nlog_every_steps: 1\n",
    "task/bitext.yaml": "# @package task.bitext\n_target_: plug.Task\nname: bitext\n",
    "task/sentiment.yaml": (
        "# @package task.sentiment\ndefaults:\n  - /trainer@trainer: finetune\n_target_: plug.Task\nname: sentiment\n"
    ),
    "task/all.yaml": "defaults:\n  - bitext\n  - sentiment\n",
}

PLUG = '''
"""A plug-in."""

from typing import Annotated
from pydantic import Field
from mlmx.data.corpus import Annotator, Corpus
from mlmx.models.load import Source
from mlmx.objectives.objective import Objective
from mlmx.tasks import task
from mlmx.training import trainer


class Mlm:
    """Masks tokens.

    More.
    """

    def __init__(self, encoder, *, mask_ratio: Annotated[float, Field(ge=0, le=1)], caps: dict[str, int]): ...


class Tlm:
    def __init__(self, encoder, *, mask_ratio: Annotated[float, Field(ge=0, le=1)], reset_positions: bool): ...


class Model:
    def __init__(self, *, width: int, tokenizer: object): ...


class Tokenizer:
    def __init__(self, *, size: int): ...


class World:
    def __init__(self, *, size: int): ...


class Text:
    def __init__(self, *, path: str): ...


class Gold:
    pass


class Pretrained:
    def __init__(self, *, source: str, revision: str | None): ...


class Trainer(trainer.Trainer):
    def __init__(self, *, max_steps: int, log_every_steps: int): ...


class Task:
    def __init__(self, *, name: str): ...


for kind, *classes in (Annotator, Gold), (Corpus, World, Text), (Objective, Mlm, Tlm), (Source, Model, Pretrained):
    for each in classes:
        kind.register(each)
task.Task.register(Task)
'''


def write_tree(folder: Path) -> Path:
    """Write the tree and the plug-in package; returns the config folder."""
    conf = folder / "conf"
    conf.mkdir()
    for name in ("base", "pretrain", "finetune", "eval", "run"):
        shutil.copy(REAL / f"{name}.yaml", conf)
    (conf / "base.yaml").write_text((conf / "base.yaml").read_text().replace("plugins: []", "plugins: [plug]"))
    for group in ("parallel", "tracker", "experiment"):
        shutil.copytree(REAL / group, conf / group)
    for name, text in FILES.items():
        (conf / name).parent.mkdir(exist_ok=True)
        (conf / name).write_text(text)
    (folder / "plug.py").write_text(PLUG)
    return conf


def use_tree(folder: Path, monkeypatch) -> Path:
    """Write the tree, and let mlmx work in the folder with nothing but this; returns the config folder."""
    conf = write_tree(folder)
    monkeypatch.setattr(compose, "conf_dir", lambda: conf)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    return conf
