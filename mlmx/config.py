"""Check command lines: every choice, key and value, of every job of a sweep, before Hydra sees them.

Hydra stops at the first mistake, exits 1 and lets ``+typo=1`` pass. So every override is parsed and checked here first, and all
problems are told at once. With ``compose``, ``overrides`` and ``jobs``, all that knows Hydra
and OmegaConf.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped, unused-ignore]

from mlmx.build import MISSING, problems_of
from mlmx.compose import Command, Composer, message_of
from mlmx.errors import Problem, UserError
from mlmx.frozen import component_nodes, freeze
from mlmx.overrides import (
    alternatives_of,
    choices_exist,
    combinations,
    header_problems,
    is_choice,
    key_problem,
    line_of,
    open_mapping,
    parse,
    selects_for_stage,
)
from mlmx.secret import secret_overrides
from mlmx.target import allow_package


@dataclass(frozen=True, slots=True)
class Checked:
    """A command line that may be run.

    Attributes:
        overrides: what to give to Hydra, rewritten where mlmx accepts what Hydra does not.
        configs: the frozen config of each job (of some of the jobs, if there are very many).
        multirun: whether it is a sweep.
    """

    overrides: list[str]
    configs: list[dict[str, Any]]
    multirun: bool


def check(command: Command, overrides: Sequence[str], *, multirun: bool = False, keys_only: bool = False) -> Checked:
    """Check a command line: every choice, every key and every value that mlmx knows without importing a component.

    Args:
        command: what to compose.
        overrides: as typed.
        multirun: whether comma-separated values are a sweep.
        keys_only: leave out what only a run needs, such as values that must be given.

    Raises:
        UserError: with all problems.
    """
    composer = Composer(command)
    problems: list[Problem] = []
    parsed = list(parse(composer, overrides, problems))
    problems += secret_overrides(overrides)
    multirun = multirun or any(o.key_or_group == "hydra.mode" and "MULTIRUN" in str(o.input_line) for o in parsed)
    for override in parsed:
        if override.is_sweep_override() and not multirun:
            told = "several values: add -m to sweep over them, or write [a,b] for a list, or quote a string."
            problems.append(Problem(override.get_key_element(), told))
    alternatives = [list(alternatives_of(composer, override)) for override in parsed]
    invalid = {i for i, values in enumerate(alternatives) if not choices_exist(composer, values, problems)}
    kept = [i for i in range(len(parsed)) if i not in invalid and (multirun or not parsed[i].is_sweep_override())]
    rewritten: dict[int, str] = {}
    configs = []
    for job in combinations([alternatives[i] for i in kept]):
        config = _check_job(composer, dict(zip(kept, job, strict=True)), rewritten, problems, keys_only=keys_only)
        configs += [config] if config else []
    problems = list(dict.fromkeys(problems))
    if problems:
        # The command fails anyway, so there is time to import the components and to tell about their settings too.
        places = {problem.where for problem in problems}
        for config in configs:
            problems += [problem for problem in component_problems(config) if problem.where not in places]
        raise UserError(list(dict.fromkeys(problems)))
    lines = [
        rewritten.get(i, "") + str(override.input_line).lstrip("+") if i in rewritten else str(override.input_line)
        for i, override in enumerate(parsed)
    ]
    return Checked(lines, configs, multirun)


def component_problems(config: Mapping[str, Any]) -> list[Problem]:
    """Check the settings of all components of a frozen config against their constructors, which imports them."""
    for package in config["plugins"]:
        allow_package(package)
    return [problem for where, slot, node in component_nodes(config) for problem in problems_of(node, where, slot)]


def frozen_config(composed: DictConfig, command: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Freeze what Hydra composed, its own node included.

    Raises:
        UserError: with all problems.
    """
    config, problems = _freeze(composed, command, [line.lstrip("+~").partition("=")[0] for line in overrides])
    if problems:
        raise UserError(problems)
    return config


def _freeze(composed: DictConfig, command: str, overridden: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    choices = {str(key): option for key, option in composed.hydra.runtime.choices.items()}
    plain: dict[str, Any] = {}
    problems = []
    for key in composed:
        if key == "hydra":
            continue
        try:
            plain[str(key)] = _plain(composed, str(key))
        except InterpolationToMissingValueError as error:
            referred = re.findall(r"\$\{([^}]*)\}", str(error)) or [str(error.full_key or key)]
            missing = [name for name in referred if OmegaConf.is_missing(composed, name)] or _missing_inputs(composed) or referred
            problems += [Problem(name, f"must be given: {name}=<value>.") for name in missing]
        except OmegaConfBaseException as error:
            problems.append(Problem(str(error.full_key or key), message_of(error)))
    if problems:
        return {}, list(dict.fromkeys(problems))
    not_finite = list(_not_finite(plain))
    places = {problem.where for problem in not_finite}
    config, problems = freeze(plain, choices, command=command, overridden=overridden)
    return config, not_finite + [problem for problem in problems if problem.where not in places]


def _not_finite(value: Any, where: str = "") -> Iterator[Problem]:
    """Yield a problem for each infinity and NaN: they have no place in JSON, in which stages are named and handed to workers."""
    if isinstance(value, float) and not math.isfinite(value):
        yield Problem(where, f"{value} is not valid: must be finite.")
    elif isinstance(value, Mapping | list):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _not_finite(inner, f"{where}.{key}" if where else str(key))


def _missing_inputs(composed: DictConfig) -> list[str]:
    inputs = composed.get("inputs") or {}
    return [f"inputs.{name}" for name in inputs if OmegaConf.is_missing(inputs, name)]


def _plain(composed: DictConfig, key: str) -> Any:
    if OmegaConf.is_missing(composed, key):
        return MISSING
    value = composed[key]
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=False) if OmegaConf.is_config(value) else value


def _key_of(override: Override) -> str:
    """Return the key of an override, with the package but without the sign that adds or deletes it."""
    return str(override.get_key_element()).lstrip("+~")


def _check_job(
    composer: Composer, job: Mapping[int, Override], rewritten: dict[int, str], problems: list[Problem], *, keys_only: bool
) -> dict[str, Any] | None:
    """Check one job, collect its problems, and return its frozen config if it comes that far."""
    choices = {i: override for i, override in job.items() if is_choice(composer, override)}
    settings = {i: override for i, override in job.items() if i not in choices}
    try:
        own = {i: override for i, override in choices.items() if selects_for_stage(override) and not override.is_delete()}
        if own:
            others = [str(override.input_line) for i, override in choices.items() if i not in own]
            known = composer.compose(others).hydra.runtime.choices
            for i, override in own.items():
                # A stage may select an option of its own where the config so far has none: to Hydra that is an addition.
                rewritten[i] = "" if f"{override.key_or_group}@{override.package}" in known else "+"
        lines = [line_of(override, rewritten.get(i)) for i, override in choices.items()]
        base = composer.compose(lines)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        named = next((i for i, override in choices.items() if f"'{_key_of(override)}'" in str(error)), None)
        if named is None:
            given = " ".join(str(override.input_line) for override in choices.values())
            problems.append(Problem(given or composer.config_name, message_of(error)))
            return None
        key = _key_of(choices[named])
        problems.append(Problem(key, message_of(error)))
        # Neither it nor settings of what it selects can be looked at further; the others can.
        below = f"{key.rpartition('@')[2]}."
        rest = {i: override for i, override in job.items() if i != named and not _key_of(override).startswith(below)}
        return _check_job(composer, rest, rewritten, problems, keys_only=keys_only)
    headers = header_problems(composer, lines, base)
    problems += headers
    composed = copy.deepcopy(base)
    for i, override in settings.items():
        problem = key_problem(composer, base, override)
        if problem is None:
            if not override.is_delete() and open_mapping(base, override.key_or_group):
                rewritten[i] = "++"
                override = composer.parse(line_of(override, "++"))
            try:
                ConfigLoaderImpl._apply_overrides_to_config([override], composed)
            except (HydraException, OmegaConfBaseException) as error:
                problem = Problem(override.key_or_group, message_of(error))
        problems += [problem] if problem else []
    if keys_only or headers:
        return None
    overridden = [_key_of(override) for override in job.values()]
    config, found = _freeze(composed, composer.command.name, overridden)
    problems += found
    return config if "places" in config else None
