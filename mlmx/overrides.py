"""What single overrides mean and what is wrong with them: their groups, options, keys and values."""

from __future__ import annotations

import difflib
import itertools
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mlmx.build import is_node
from mlmx.compose import Composer, message_of
from mlmx.errors import Problem, nearest
from mlmx.frozen import STAGE_GROUPS

# Up to this many jobs, every combination of a sweep is composed before it starts; beyond, each value once.
_MAX_COMBINATIONS = 64


def parse(composer: Composer, overrides: Sequence[str], problems: list[Problem]) -> Iterator[Override]:
    """Yield the overrides that can be parsed; add the problems of the others to ``problems``."""
    for line in overrides:
        try:
            yield composer.parse(line)
        except HydraException as error:
            told = "an override is key=value." if "=" not in line else f"cannot be parsed: {message_of(error)}."
            problems.append(Problem(line, told + _quoting(composer, line)))


def _quoting(composer: Composer, line: str) -> str:
    """Return the advice to quote a value, such as a path with letters beyond ASCII, where that is all it needs."""
    key, _, value = line.partition("=")
    if not value or value[0] in "[{(\"'":
        return ""
    try:
        composer.parse(f'{key}="{value}"')
    except HydraException:
        return ""
    return f""" Quote the value: {shlex.quote(f'{key}="{value}"')}"""


def alternatives_of(composer: Composer, override: Override) -> Iterator[Override]:
    """Yield an override for each value of a sweep."""
    if not override.is_sweep_override():
        yield override
        return
    if override.is_discrete_sweep():
        values: Iterable[Any] = override.sweep_string_iterator()
    else:
        interval = override.value()
        values = [interval.start, interval.end]
    for value in values:
        yield composer.parse(f"{override.get_key_element()}={value}")


def combinations(alternatives: Sequence[Sequence[Override]]) -> Iterator[Sequence[Override]]:
    """Yield the jobs of a sweep: every combination of the overrides' values, or each value once where they are too many."""
    num_jobs = 1
    for values in alternatives:
        num_jobs *= len(values)
    if num_jobs <= _MAX_COMBINATIONS:
        yield from itertools.product(*alternatives)
        return
    first = [values[0] for values in alternatives]
    yield first
    for i, values in enumerate(alternatives):
        for value in values[1:]:
            yield [*first[:i], value, *first[i + 1 :]]


def is_choice(composer: Composer, override: Override) -> bool:
    """Tell whether an override selects an option of a group."""
    return not isinstance(override.value(), dict) and composer.repository.group_exists(override.key_or_group)


def choices_exist(composer: Composer, alternatives: Sequence[Override], problems: list[Problem]) -> bool:
    """Check that what an override selects exists, for each of its values."""
    valid = True
    for override in alternatives:
        if not is_choice(composer, override):
            if override.package is not None or "/" in override.key_or_group:
                problems.append(Problem(override.key_or_group, "no such group.", nearest(override.key_or_group, composer.groups())))
                valid = False
            continue
        value = override.value()
        chosen = value if isinstance(value, list) else [] if value is None else [value]
        options = composer.options(override.key_or_group)
        for option in map(str, chosen):
            if not composer.repository.config_exists(f"{override.key_or_group}/{option}"):
                told = f"no {override.key_or_group} {option!r}; there are {', '.join(options)}."
                problems.append(Problem(override.key_or_group, told, nearest(option, options)))
                valid = False
    return valid


def line_of(override: Override, prefix: str | None) -> str:
    """Return an override as typed, or with another prefix (``+`` adds a key, ``++`` adds or changes it)."""
    line = str(override.input_line)
    return line if prefix is None else prefix + line.lstrip("+")


def selects_for_stage(override: Override) -> bool:
    """Tell whether an override selects an option for a single stage of the chain."""
    return (override.package or "").startswith("stages.")


def open_mapping(base: DictConfig, key: str) -> bool:
    """Tell whether a key lies in a mapping with free keys: below ``stages``, or a plain mapping that is a component's setting."""
    node: Any = base
    inside_component = False
    parts = key.split(".")
    for i, part in enumerate(parts):
        if not OmegaConf.is_dict(node):
            return False
        if part not in node.keys():  # noqa: SIM118 - as below
            return parts[0] == "stages" or (inside_component and not is_node(node)) or (i > 0 and parts[0] == "hydra")
        inside_component = inside_component or is_node(node)
        node = node._get_node(part)
    return parts[0] == "stages"


def key_problem(composer: Composer, base: DictConfig, override: Override) -> Problem | None:
    """Return what is wrong with the key of an override of a setting."""
    key = override.key_or_group
    parts = key.split(".")
    adding_to_hydra = parts[0] == "hydra" and (override.is_add() or override.is_force_add())
    node: Any = base
    for i, part in enumerate(parts):
        where = ".".join(parts[:i])
        if not OmegaConf.is_dict(node) or node._is_none():
            return Problem(
                key,
                f"{where} has no settings: it is {OmegaConf.to_container(node) if OmegaConf.is_config(node) else node._value()!r}.",
            )
        if part in node.keys():  # noqa: SIM118 - `in node` denies keys whose value is still missing
            node = node._get_node(part)
            continue
        if adding_to_hydra or (parts[0] != "hydra" and open_mapping(base, key) and not (parts[0] == "stages" and is_node(node))):
            return None
        found = nearest(part, map(str, node))
        if i == 0:
            found = found or nearest(part, [*composer.groups(), *STAGE_GROUPS])
        suggestion = ".".join([*parts[:i], found, *parts[i + 1 :]]) if found else _same_leaf(base, parts[-1])
        what = "no such setting or group" if i == 0 else f"{where} has no setting {part!r}"
        return Problem(key, what + ".", suggestion)
    return None


def _same_leaf(base: DictConfig, leaf: str) -> str | None:
    """Return the full name of a setting of that name, wherever it is: for ``mask_ratio``, ``objective.mask_ratio``."""
    names: dict[str, str] = {}

    def walk(node: Any, where: str) -> None:
        for name in node:
            inner = node._get_node(name)
            if OmegaConf.is_dict(inner):
                if not inner._is_none() and name != "hydra":
                    walk(inner, f"{where}{name}.")
            elif where:
                names.setdefault(str(name), f"{where}{name}")

    walk(base, "")
    return next((names[name] for name in difflib.get_close_matches(leaf, names, n=1, cutoff=0.8)), None)


def header_problems(composer: Composer, choices: list[str], base: DictConfig) -> list[Problem]:
    """Check that each selected task's file says where the task goes: without the header, one task overwrites another."""
    task = base.task
    if not isinstance(task, DictConfig) or all(is_node(task[name]) for name in task):
        return []
    problems = []
    for default in composer.loader.compute_defaults_list(composer.config_name, choices, RunMode.RUN).defaults:
        path = default.config_path or ""
        loaded = composer.repository.load_config(path) if path.startswith("task/") else None
        if loaded is None or not set(loaded.config) - {"defaults"} or str(loaded.header.get("package") or "").startswith("task."):
            continue
        folder = next(source.path for source in composer.repository.get_sources() if source.provider == loaded.provider)
        told = f"the first line must be `# @package task.{Path(path).name}`, so that several tasks can be selected."
        problems.append(Problem(f"{folder}/{path}.yaml", told))
    return problems
