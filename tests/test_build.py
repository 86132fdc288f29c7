"""The constructor is the schema; what is no part of it is told, all at once, with the place and the nearest name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml

from mlmx import target as targets
from mlmx.build import Positive, Ratio, Unbuilt, build, problems_of
from mlmx.errors import UserError

HERE = __name__
CONF = Path(__file__).parents[1] / "conf"


class Port:
    def __init__(self, *, size: Positive) -> None: ...


class Part:
    def __init__(self, *, size: Positive) -> None:
        self.size = size


@dataclass(frozen=True)
class Shares:
    first: float
    second: float


class Fitted:
    def __init__(self, runtime: object, *, size: Positive) -> None:
        self.runtime, self.size = runtime, size


class Holder:
    def __init__(self, runtime: object, *, inner: Unbuilt[Fitted]) -> None:
        self.inner = inner.build(runtime)


class Whole:
    def __init__(
        self,
        runtime: object,
        *,
        ratio: Ratio,
        kind: Literal["near", "far"],
        path: Path,
        betas: tuple[Ratio, Ratio],
        shares: Shares,
        part: Part | None,
        parts: dict[str, Part],
    ) -> None:
        self.settings = {"ratio": ratio, "kind": kind, "path": path, "betas": betas, "shares": shares}
        self.runtime, self.part, self.parts = runtime, part, parts


@pytest.fixture(autouse=True)
def _plugin(monkeypatch):
    monkeypatch.setattr(targets, "_allowed_packages", ["mlmx"])
    targets.allow_package(HERE.partition(".")[0])


def part(**settings):
    return {"_target_": f"{HERE}.Part", "_version_": 1, "size": 3, **settings}


def whole(**settings):
    given = {"ratio": 0.5, "kind": "near", "path": "a/b", "betas": [0.9, 1], "shares": {"first": 1.0, "second": 2.0}}
    return {"_target_": f"{HERE}.Whole", **given, "part": None, "parts": {}, **settings}


def told(node) -> dict[str, str]:
    return {problem.where: str(problem) for problem in problems_of(node, "here")}


def test_settings_become_the_types_of_the_constructor():
    runtime = object()
    built = build(whole(), runtime)
    assert built.settings == {"ratio": 0.5, "kind": "near", "path": Path("a/b"), "betas": (0.9, 1.0), "shares": Shares(1.0, 2.0)}
    assert built.runtime is runtime


def test_nested_nodes_are_built_first():
    built = build(whole(part=part(), parts={"a": part(size=1), "b": part(size=2)}), None)
    assert built.part.size == 3
    assert {name: inner.size for name, inner in built.parts.items()} == {"a": 1, "b": 2}


def test_a_nested_component_that_needs_runtime_objects_is_built_by_the_one_around_it():
    def holder(**settings):
        return {"_target_": f"{HERE}.Holder", "inner": {"_target_": f"{HERE}.Fitted", "size": 3, **settings}}

    runtime = object()
    inner = build(holder(), runtime).inner
    assert (inner.runtime, inner.size) == (runtime, 3)
    assert "0 is not valid" in told(holder(size=0))["here.inner.size"]
    assert "it is no Fitted" in told(holder(_target_=f"{HERE}.Port"))["here.inner"]


def test_a_component_may_be_left_out_where_the_constructor_says_so():
    assert build(whole(part=None), None).part is None


@pytest.mark.parametrize("place", ["part", "parts.a"])
def test_a_component_of_another_kind_is_refused_with_the_nearest(place):
    other = {"_target_": f"{HERE}.Port", "size": 1}
    message = told(whole(part=other) if place == "part" else whole(parts={"a": other}))[f"here.{place}"]
    assert f"'{HERE}.Port' is not valid: it is no Part ({HERE}.Part). Did you mean '{HERE}.Part'?" in message


def test_the_class_of_a_slot_is_checked():
    (problem,) = problems_of({"_target_": "mlmx.data.annotators.gold.GoldAnnotator", "tag_map": {}}, "stages.x.corpus", "corpus")
    assert problem.where == "stages.x.corpus._target_"
    assert "it is no Corpus (mlmx.data.corpus.Corpus)" in problem.message
    assert problems_of({"_target_": "mlmx.data.annotators.gold.GoldAnnotator", "tag_map": {}}, "annotator", "annotator") == []


def test_settings_that_contradict_each_other_are_told_at_their_place():
    sides = {
        "_target_": "mlmx.data.corpora.parallel.ParallelCorpus",
        "path": "x",
        "format": "auto",
        "columns": None,
        "header": True,
    }
    data = {"_target_": "mlmx.tasks.bitext_data.ParallelBitext", "corpus": {**sides, "languages": ["en"]}, "split": "test"}
    task = yaml.safe_load((CONF / "task" / "bitext.yaml").read_text())
    del task["defaults"]
    task["protocol"] = yaml.safe_load((CONF / "protocol" / "margin.yaml").read_text())
    (problem,) = problems_of({**task, "data": {**data, "max_pairs": None}}, "task.mine", "task")
    assert str(problem) == "task.mine.data.corpus.languages: ['en']: a parallel corpus has two different languages."
    trainer = {**yaml.safe_load((CONF / "trainer" / "pretrain.yaml").read_text()), "max_epochs": 3}
    (problem,) = problems_of(trainer, "stages.x.trainer", "trainer")
    assert str(problem).startswith("stages.x.trainer.max_steps: set exactly one of max_steps, max_epochs, max_tokens")
    model = yaml.safe_load((CONF / "model" / "tiny.yaml").read_text())
    (problem,) = problems_of({**model, "num_heads": 3}, "model", "model")
    assert str(problem) == "model.hidden_size: 128 is not a multiple of num_heads=3."


def test_what_is_no_component_is_refused_where_one_is_needed():
    assert "here.part: 3 is not valid: a component is needed" in told(whole(part=3))["here.part"]


def test_all_problems_are_told_at_once():
    node = whole(rato=1, zzz=1, ratio=1.5, kind="nar", betas=[0.9], shares={"first": "x"}, part=part(size=0, sise=1))
    del node["path"]
    found = told(node)
    assert "Did you mean 'ratio'?" in found["here.rato"]
    assert "where an experiment gives it, ~here.zzz takes it out." in found["here.zzz"]
    assert "1.5 is not valid: Input should be less than or equal to 1" in found["here.ratio"]
    assert "'near' or 'far'" in found["here.kind"]
    assert "missing" in found["here.path"]
    assert "here.betas.1" in found
    assert {"here.shares.first", "here.shares.second"} <= set(found)
    assert "greater than 0" in found["here.part.size"]
    assert "Did you mean 'size'?" in found["here.part.sise"]
    with pytest.raises(UserError) as caught:
        build(node, None, where="here")
    assert {problem.where for problem in caught.value.problems} == set(found)


@pytest.mark.parametrize("wrong", ["0.5", True, None, [0.5]])
def test_types_are_not_guessed(wrong):
    assert list(told(whole(ratio=wrong))) == ["here.ratio"]


def test_keys_that_describe_a_component_are_no_settings():
    assert told(part(_inputs_=["size"], _no_effect_=[], _name_="x")) == {}


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "mlmxx.x", "mlmx_x.y"])
def test_foreign_classes_are_refused_before_they_are_imported(target):
    assert "plugins=[" in told({"_target_": target})["here._target_"]


def test_a_plugin_is_foreign_until_it_is_declared(monkeypatch):
    monkeypatch.setattr(targets, "_allowed_packages", ["mlmx"])
    package = HERE.partition(".")[0]
    assert f"plugins=[{package}]" in told(part())["here._target_"]
    targets.allow_package(package)
    assert told(part()) == {}


@pytest.mark.parametrize("target", ["mlmx", "mlmx.nowhere.X", "mlmx.build.Nothing", "mlmx.build.Ratio", "mlmx.data.corpus.Corpus"])
def test_a_target_that_is_no_class_is_a_problem(target):
    assert "cannot be used" in told({"_target_": target})["here._target_"]
