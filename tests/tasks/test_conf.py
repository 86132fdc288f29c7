from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mlmx.build import build, problems_of
from mlmx.tasks.task import Task

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = {path.stem: path.relative_to(CONF / "task").with_suffix("").as_posix() for path in (CONF / "task").rglob("*.yaml")}
SEVERAL = ("glue", "glue_files")  # options that select several tasks
MADE_UP = ("eval_mask", "graded_similarity", "language_identification", "bitext_comparable", "retrieval_tuned", "next_token")
NAMES = sorted(OPTIONS.keys() - set(SEVERAL))


@cache
def node_of(name: str, *overrides: str) -> dict:
    """The task's node as a command composes it, without its trainer."""
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("eval", [f"task={OPTIONS[name]}", *overrides])
    tasks = OmegaConf.to_container(config.task)
    assert list(tasks) == [name], "the YAML puts itself where its name says"
    node = tasks[name]
    assert node["name"] == name
    node.pop("trainer", None)
    return node


def test_glue_selects_its_nine_tasks():
    with initialize_config_dir(str(CONF), version_base=None):
        hub, files = (compose("eval", [f"task={option}"]).task for option in SEVERAL)
        one = compose("eval", ["task=[glue_files,bitext]", "inputs.glue=/there", "task.cola.submission=true"]).task
    assert list(hub) == list(files)
    assert set(hub) == {path.stem for path in (CONF / "task" / "glue").iterdir()}
    assert set(one) == {*hub, "bitext"}
    assert (one.cola.data.source, one.mnli.data.diagnostics, one.cola.submission) == ("/there/CoLA", "/there/diagnostic", True)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_all_settings_of_its_task_and_no_other(name):
    problems = [problem for problem in problems_of(node_of(name), f"task.{name}") if "'???'" not in problem.message]
    assert problems == []


@pytest.mark.parametrize("name", [name for name in NAMES if ("_" not in name and name != "mteb") or name in MADE_UP])
def test_options_without_files_are_ready_to_run(name):
    task = build(node_of(name), where=f"task.{name}")
    assert isinstance(task, Task)
    assert task.name == name


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("next_token_files", ["task.next_token_files.corpus.path=a.txt"]),
        ("eval_mask_files", ["corpus@task.eval_mask_files.corpus=jsonl", "task.eval_mask_files.corpus.path=a.jsonl"]),
        (
            "tagging_files",
            [
                "corpus@task.tagging_files.corpora.train=conllu",
                "+corpus@task.tagging_files.corpora.dev=conllu",
                "task.tagging_files.corpora.train.path=a.conllu",
                "task.tagging_files.corpora.dev.path=a.conllu",
                "task.tagging_files.corpora.test.path=a.conll",
            ],
        ),
        (
            "tagging_files",
            [
                override
                for split in ("train", "test")
                for override in (
                    f"corpus@task.tagging_files.corpora.{split}=hub_words",
                    f"task.tagging_files.corpora.{split}.name=some/words",
                    f"task.tagging_files.corpora.{split}.split={split}",
                    f"task.tagging_files.corpora.{split}.revision=0123456789",
                )
            ],
        ),
        (
            "bitext_parallel",
            ["task.bitext_parallel.data.corpus.path=a.tsv", "task.bitext_parallel.data.corpus.languages=[en,de]"],
        ),
        ("tatoeba_files", ["task.tatoeba_files.data.path=tatoeba.*-eng.tsv.gz", "protocol@task.tatoeba_files.protocol=cosine"]),
        (
            "bitext_bucc",
            [
                f"task.bitext_bucc.{data}.{setting}=a.tsv"
                for data in ("data", "protocol.train")
                for setting in ("source", "target", "gold")
            ],
        ),
        (
            "curation_files",
            [
                "task.curation_files.corpus.path=[a.en,a.de]",
                "task.curation_files.corpus.languages=[en,de]",
                "+noise@task.curation_files.noise=injected",
                "task.curation_files.precision_at=[9]",
            ],
        ),
        ("bitext_files", [f"task.bitext_files.data.{setting}=a.tsv" for setting in ("source", "target", "gold")]),
        ("sentiment_files", ["task.sentiment_files.data.path=a.jsonl", "task.sentiment_files.data.split_column=split"]),
    ],
)
def test_options_take_files_of_the_user(name, overrides):
    assert isinstance(build(node_of(name, *overrides), where=f"task.{name}"), Task)


def test_an_option_can_be_used_twice_under_names_of_its_own(tmp_path):
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("eval", ["task=bitext", "+task@task.other=bitext", "task.other.name=other", "task.other.layer=1"])
    assert {name: (node.name, node.layer) for name, node in config.task.items()} == {
        "bitext": ("bitext", "last"),
        "other": ("other", 1),
    }
