"""The plain config a run is made of: stages resolved, paths absolute, everything checked that needs no import of a component.

A composed config has root groups and, under ``stages``, what single stages change. Freezing it gives a plain dictionary in which
every stage of the chain has its own complete nodes, so that nothing below has to know about inheritance.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlmx.about import about_problems
from mlmx.build import MISSING, is_node
from mlmx.errors import Problem, nearest
from mlmx.inputs import path_problems, resolve_paths
from mlmx.secret import secret_problems
from mlmx.settings import NO_NAME, Settings, is_name, settings_problems

STAGE_GROUPS = ("objective", "corpus", "annotator", "trainer")
# Where mistakes leave nothing to resolve.
_STRUCTURE = ("chain", "stages", "model", "task", "plugins", "outputs", *STAGE_GROUPS)


def freeze(
    composed: Mapping[str, Any], choices: Mapping[str, Any], *, command: str, overridden: Collection[str] = ()
) -> tuple[dict[str, Any], list[Problem]]:
    """Resolve a composed config into the nodes of every stage, and check it.

    Args:
        composed: the composed config as plain data, interpolations resolved; ``???`` marks what the user must give.
        choices: which option was chosen: ``group`` or ``group@package`` -> option.
        command: ``pretrain`` has no tasks, ``finetune`` and ``eval`` have no pretraining, whatever an experiment says.
        overridden: the keys given on the command line, to refuse those without effect.

    Returns:
        The frozen config, and all problems found; the config is only usable if there are none.
    """
    config = copy.deepcopy(dict(composed))
    config["annotator"] = config.get("annotator") or None
    problems = settings_problems(config)
    if any(problem.where.partition(".")[0] in _STRUCTURE for problem in problems):
        return config, problems
    _name_nodes(config, choices)
    problems += _narrow(config, command, overridden)
    chain = config["chain"]
    stages, places = _resolve_stages(config, problems)
    used = _used_roots(config, places)
    for key in overridden:
        root = re.split(r"[.@]", key, maxsplit=1)[0]
        if "@" not in key and root in STAGE_GROUPS and root not in used:
            why = f"every stage of the chain {chain} brings its own {root}" if chain else "there is no pretraining stage"
            trained = next((name for name, node in config["task"].items() if "trainer" in node), None)
            own = f"stages.{chain[0]}" if chain else f"task.{trained}" if root == "trainer" and trained else None
            problems.append(Problem(key, f"has no effect: {why}.", own and key.replace(root, f"{own}.{root}", 1)))
    problems += _name_problems(stages, places)
    for name, node in config["task"].items():
        problems += about_problems(node, f"task.{name}")
    nodes = {"model": config["model"], **{f"task.{name}": node for name, node in config["task"].items()}}
    for stage, groups in stages.items():
        nodes |= {places[stage, group]: node for group, node in groups.items() if node is not None}
    for where, node in nodes.items():
        problems += _row_length_problems(node, where)
    if "corpus" in used:
        nodes["corpus"] = config["corpus"]
    for where, node in nodes.items():
        problems += _missing(node, where)
    resolve_paths({"model": config["model"], "task": config["task"], "stages": stages, "corpus": config["corpus"]})
    for where, node in nodes.items():
        problems += path_problems(node, where)
    frozen = {key: config.get(key) for key in Settings.model_fields if key not in ("objective", "annotator", "trainer", "inputs")}
    frozen["stages"] = stages
    frozen["places"] = {f"stages.{stage}.{group}": where for (stage, group), where in places.items()}
    frozen["outputs"] = str(Path(config["outputs"]).expanduser().absolute())
    problems += secret_problems(frozen)
    return frozen, _unique(problems)


def _name_problems(stages: Mapping[str, Mapping[str, Any]], places: Mapping[tuple[str, str], str]) -> Iterator[Problem]:
    """A component's ``_name_`` is its option's, unless a config of the user's gives another."""
    for stage, groups in stages.items():
        for group, node in groups.items():
            if node is not None and not is_name(node.get("_name_", "custom")):
                yield Problem(f"{places[stage, group]}._name_", f"{node['_name_']!r} {NO_NAME}")


def _narrow(config: dict[str, Any], command: str, overridden: Collection[str]) -> Iterator[Problem]:
    """Leave out what a command does not do; asking for it by hand is a mistake."""
    left_out: dict[str, Any] = {"pretrain": {"task": {}}, "run": {}}.get(command, {"chain": [], "stages": {}})
    missing = "tasks" if command == "pretrain" else "pretraining"
    for key in overridden:
        if re.split(r"[./@]", key, maxsplit=1)[0] in left_out:
            yield Problem(key, f"has no effect: mlmx {command} has no {missing}; use mlmx run.")
    config.update(left_out)


def component_nodes(frozen: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the components a frozen config uses: where the user finds them, their slot, the node; a task's trainer apart."""
    yield "model", "model", frozen["model"]
    for stage, groups in frozen["stages"].items():
        for group, node in groups.items():
            if node is not None:
                yield frozen["places"][f"stages.{stage}.{group}"], group, node
    for name, node in frozen["task"].items():
        yield f"task.{name}", "task", {key: value for key, value in node.items() if key != "trainer"}
        if "trainer" in node:
            yield f"task.{name}.trainer", "trainer", node["trainer"]


def _name_nodes(config: dict[str, Any], choices: Mapping[str, Any]) -> None:
    """Write the chosen option's name into each component node, as ``_name_``."""
    for key, option in choices.items():
        group, _, package = key.partition("@")
        node: Any = config
        for part in (package or group.replace("/", ".")).split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if is_node(node) and isinstance(option, str):
            node["_name_"] = option.replace("/", "_")
    for name, node in config["task"].items():
        node["_name_"] = name
    roots = [config[group] for group in ("model", *STAGE_GROUPS)]
    for node in [*roots, *(node for groups in config["stages"].values() for node in groups.values())]:
        if is_node(node):
            node.setdefault("_name_", "custom")


def _resolve_stages(
    config: Mapping[str, Any], problems: list[Problem]
) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, str], str]]:
    """Return the chain's stages with complete nodes, and where in the config each node comes from."""
    chain = config["chain"]
    for name, groups in config["stages"].items():
        if name not in chain:
            told = f"the chain {chain} has no such stage; remove it with ~stages.{name}."
            problems.append(Problem(f"stages.{name}", told, nearest(name, chain)))
        for group in groups:
            if group not in STAGE_GROUPS:
                told = f"a stage has only {', '.join(STAGE_GROUPS)}."
                problems.append(Problem(f"stages.{name}.{group}", told, nearest(group, STAGE_GROUPS)))
    stages: dict[str, dict[str, Any]] = {}
    places: dict[tuple[str, str], str] = {}
    for name in chain:
        own = config["stages"].get(name, {})
        stages[name] = {}
        for group in STAGE_GROUPS:
            where = f"stages.{name}.{group}"
            places[name, group] = where if group in own else group
            root = config[group]
            if group not in own:
                stages[name][group] = copy.deepcopy(root)
            elif own[group] is None or is_node(own[group]):
                stages[name][group] = own[group]
            elif not isinstance(own[group], Mapping) or root is None:
                problems.append(
                    Problem(where, f"{json.dumps(own[group])} is no {group}; select one with {group}@{where}=<option>.")
                )
                stages[name][group] = None
            else:
                stages[name][group] = _merge(root, own[group], where, problems)
    return stages, places


def _merge(base: Mapping[str, Any], own: Mapping[str, Any], where: str, problems: list[Problem]) -> dict[str, Any]:
    """Merge a stage's settings into the root's node; settings that the node does not have are problems."""
    merged = copy.deepcopy(dict(base))
    for key, value in own.items():
        if key not in base and is_node(base):
            problems.append(Problem(f"{where}.{key}", f"{base['_target_']} has no such setting.", nearest(key, base)))
        elif isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and not is_node(value):
            merged[key] = _merge(base[key], value, f"{where}.{key}", problems)
        else:
            merged[key] = value
    return merged


def _used_roots(config: Mapping[str, Any], places: Mapping[tuple[str, str], str]) -> set[str]:
    used = {group for (stage, group), where in places.items() if where == group or not _replaces(config, stage, group)}
    if not config["chain"] and "tokenizer" in config["model"]:
        used.add("corpus")  # the tokenizer is trained on it
    return used


def _replaces(config: Mapping[str, Any], stage: str, group: str) -> bool:
    own = config["stages"][stage][group]
    return own is None or is_node(own)


def _missing(value: Any, where: str) -> Iterator[Problem]:
    if value == MISSING:
        yield Problem(where, f"must be given: {where}=<value>.")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _missing(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _missing(inner, f"{where}[{i}]")


def _row_length_problems(node: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """A trainer's settings of how text is cut into rows are for pretraining; a task cuts its own."""
    trainer = node.get("trainer") if where.startswith("task.") else node if where.endswith("trainer") else None
    if not isinstance(trainer, Mapping):
        return
    for setting in ("max_length", "overlong"):
        given = trainer.get(setting) is not None
        if where.startswith("task.") and given:
            own = f" Use {where}.max_length." if setting == "max_length" and "max_length" in node else ""
            yield Problem(f"{where}.trainer.{setting}", f"has no effect: the task cuts its own rows.{own}")
        elif not where.startswith("task.") and setting in trainer and not given:
            yield Problem(f"{where}.{setting}", "must be given for pretraining.")


def _unique(problems: list[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))
