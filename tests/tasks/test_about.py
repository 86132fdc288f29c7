"""What task YAMLs say of themselves: where the data come from, and which score is the main one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mlmx import listing
from mlmx.about import About
from mlmx.build import build
from mlmx.fingerprint import canonical_document, fingerprint_of
from mlmx.tasks.bitext_data import MicroworldBitext
from mlmx.tasks.metrics import SCORE_METRICS, TRANSLATION_METRICS
from mlmx.tasks.retrieval_scores import METRICS
from mlmx.tasks.sentiment import classification_scores
from mlmx.tasks.tagging import Tagged, Tagging
from tests.tasks.test_conf import CONF, NAMES, OPTIONS, node_of

ABOUT = {option.name: option.about for option in listing.options("tasks", [CONF])}


def of_glue(node: dict[str, Any]) -> list[str]:
    return list(build(node["data"]).metrics)


def of_bitext(node: dict[str, Any]) -> list[str]:
    train = {"_target_": "mlmx.tasks.bitext_data.MicroworldBitext", "seed": 0, "split": "dev", "num_pairs": 9, "num_unpaired": 0}
    protocol = node["protocol"]
    if protocol.get("train") is not None:
        protocol = {**protocol, "train": train}
    data = MicroworldBitext(seed=0, split="test", num_pairs=9, num_unpaired=0).load()["test"]
    vectors = np.eye(9, dtype=np.float32)
    judgement = build(protocol).judge("test", data, lambda data: (vectors, vectors), torch.device("cpu"))
    return [metric for record in judgement.records for metric in record["ratios"]]


def of_tagging(node: dict[str, Any]) -> list[str]:
    task = Tagging(name="it", layer=node["layer"], corpora={"train": None, "test": None}, max_length=9, batch_tokens=9)  # type: ignore[dict-item]
    task._training_sentences = [Tagged("", "a b", ["a", "b"], ["B-X", "O"])]
    (record,) = task._records(task._training_sentences, [["B-X", "O"]], "test")
    return list(record["ratios"])


# The class of a task -> the metrics it gives with the settings of a node.
GIVEN = {
    "Glue": of_glue,
    "Bitext": of_bitext,
    "Tagging": of_tagging,
    "Sentiment": lambda node: [score.metric for score in classification_scores(["a"], ["a"], ["a"], task="it", split="test")],
    "Similarity": lambda node: [f"cosine_{metric}" for metric in SCORE_METRICS],
    "Retrieval": lambda node: list(METRICS),
    "TunedRetrieval": lambda node: list(METRICS),
    "Translation": lambda node: list(TRANSLATION_METRICS),
    "Curation": lambda node: ["auc"],
    "EvalMask": lambda node: ["loss"],
    "NextToken": lambda node: ["loss"],
}


@pytest.mark.parametrize("name", NAMES)
def test_every_task_says_where_its_data_come_from_and_names_a_main_score_that_it_gives(name):
    about = ABOUT[OPTIONS[name]]
    assert isinstance(about, About)
    node = node_of(name)
    kind = node["_target_"].rpartition(".")[2]
    if kind == "Mteb":
        assert about.metric is None  # each of its tasks has its own
    else:
        assert about.metric in GIVEN[kind](node)
        assert (about.direction == "lower") == (about.metric == "loss")
    # What is composed says the same, also where one YAML is based on another.
    assert node["_about_"] == {field: getattr(about, field) for field in ("source", "licence", "metric", "direction")}


def repositories(value: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(value, dict):
        if "revision" in value:
            yield from ((value[key], value["revision"]) for key in value["_inputs_"] if value[key] != "???")
        for inner in value.values():
            yield from repositories(inner)


def test_what_comes_from_the_hub_is_pinned():
    found = {place for name in NAMES for place in repositories(node_of(name))}
    assert ("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c") in found
    assert [place for place in found if place[1] is None or not re.fullmatch("[0-9a-f]{40}", place[1])] == []


def test_it_has_no_effect_on_the_name_of_a_stage():
    node = node_of("cola")
    others = [{**node, "_about_": {**node["_about_"], "licence": "another"}}, {key: node[key] for key in node if key != "_about_"}]
    names = {fingerprint_of(canonical_document("eval", {"task": one}, {}, {})) for one in (node, *others)}
    assert len(names) == 1
