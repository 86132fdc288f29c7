"""What stands at the top of a config, and what is wrong with it."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlmx.build import MISSING, NonNegative, Positive, PositiveFloat, is_node
from mlmx.errors import Problem, nearest

# Names become parts of the names of directories.
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$"
NO_NAME = "is no name: letters, digits and _ . + - are allowed, and the first is a letter, a digit or _."
_Name = Annotated[str, Field(pattern=_NAME)]


class Parallel(BaseModel):
    """How a stage is spread over processes; without effect on results."""

    model_config = ConfigDict(extra="forbid", strict=True)
    num_processes: Positive
    num_nodes: Positive
    rendezvous: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+:[0-9]+$")] | None
    num_shards: Positive
    device: Literal["auto", "cpu", "cuda"]
    num_threads: Positive | None
    max_restarts: NonNegative
    timeout_seconds: Positive
    time_limit_minutes: PositiveFloat | None
    peak_flops: PositiveFloat | None


class Tracker(BaseModel):
    """Where metrics are shown besides ``metrics.jsonl``."""

    model_config = ConfigDict(extra="forbid", strict=True)
    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    entity: str | None


class Decontamination(BaseModel):
    """How judged examples are looked for in pretraining corpora."""

    model_config = ConfigDict(extra="forbid", strict=True)
    ngram_words: Positive
    min_words: Positive
    leave_out: bool


class Settings(BaseModel):
    """What stands at the top of a config; components are checked against their constructors when they are needed."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: _Name
    seed: NonNegative
    chain: list[_Name]
    stages: dict[str, dict[str, Any]]
    outputs: str
    inputs: dict[str, str]
    plugins: list[str]
    sweep_metric: Annotated[str, Field(pattern=r"^[^/]+/[^/]+/[^/]+$")] | None
    decontamination: Decontamination | None
    parallel: Parallel
    tracker: Tracker
    model: dict[str, Any]
    objective: dict[str, Any] | None
    corpus: dict[str, Any]
    annotator: dict[str, Any] | None
    trainer: dict[str, Any]
    task: dict[str, dict[str, Any]]


def settings_problems(config: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with a composed config, but for the settings of its components."""
    problems = []
    try:
        Settings.model_validate_json(json.dumps(config))
    except ValidationError as error:
        for detail in error.errors():
            where = ".".join(map(str, detail["loc"]))
            if detail["type"] == "extra_forbidden":
                siblings = _siblings(detail["loc"])
                told = f"no such setting; there are {', '.join(siblings)}."
                problems.append(Problem(where, told, nearest(str(detail["loc"][-1]), siblings)))
            elif detail["type"] == "missing":
                problems.append(Problem(where, "missing."))
            elif detail["input"] == MISSING:
                problems.append(Problem(where, "must be given."))
            else:
                allowed = re.findall(r"'([^']*)'", detail["msg"]) if detail["type"] == "literal_error" else []
                hint = nearest(str(detail["input"]), allowed)
                problems.append(Problem(where, f"{json.dumps(detail['input'])} is not valid: {detail['msg']}.", hint))
    task = config.get("task")
    for name, node in task.items() if isinstance(task, Mapping) else ():
        if not is_name(name):
            problems.append(Problem(f"task.{name}", NO_NAME))
        elif not is_node(node):
            told = (
                f"is no task: it has no _target_. If it is not selected, select it (task=[...,{name}]) or leave its settings out; "
                "if it is, its YAML must start with `# @package task.<name>`."
            )
            problems.append(Problem(f"task.{name}", told))
        elif node.get("name", name) not in (name, MISSING):
            told = f"{node['name']!r} is not the task's own name, and its scores would be reported under it; set it to {name}."
            problems.append(Problem(f"task.{name}.name", told))
    plugins = config.get("plugins")
    problems += [
        Problem("plugins", f"there is no package {package!r} in this environment.")
        for package in (plugins if isinstance(plugins, list) else ())
        if isinstance(package, str) and not _importable(package)
    ]
    parallel = config.get("parallel")
    if isinstance(parallel, Mapping) and isinstance(nodes := parallel.get("num_nodes"), int):
        if nodes > 1 and parallel.get("rendezvous") is None:
            problems.append(Problem("parallel.rendezvous", f"must be given for {nodes} nodes: <host of one of them>:<free port>."))
        elif nodes == 1 and parallel.get("rendezvous") is not None:
            problems.append(Problem("parallel.rendezvous", "has no effect on one node: parallel.num_nodes is 1."))
        processes, shards = parallel.get("num_processes"), parallel.get("num_shards")
        if isinstance(processes, int) and isinstance(shards, int) and shards > 0 and processes * nodes % shards:
            told = f"{shards} does not divide the {processes * nodes} processes (num_processes x num_nodes)."
            problems.append(Problem("parallel.num_shards", told))
    chain = config.get("chain")
    if isinstance(chain, list) and len(set(map(str, chain))) < len(chain):
        problems.append(Problem("chain", f"{chain} names a stage twice."))
    return problems


def is_name(text: object) -> bool:
    """Tell whether a text may be part of the name of a directory."""
    return isinstance(text, str) and re.fullmatch(_NAME, text) is not None


def _importable(package: str) -> bool:
    return package.isidentifier() and importlib.util.find_spec(package) is not None


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    parts: dict[str, Any] = {"parallel": Parallel, "tracker": Tracker, "decontamination": Decontamination}
    model = parts.get(str(location[0]), Settings) if len(location) > 1 else Settings
    return list(model.model_fields)
