"""Compose and check configs: with ``jobs``, the only module that knows Hydra and OmegaConf.

Hydra stops at the first mistake, exits 1 and lets ``+typo=1`` pass. So every override is parsed and checked here before Hydra
sees the command line: unknown groups, options and keys, all of them at once, for every job of a sweep.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped, unused-ignore]

from mlmx.build import allow_package, is_node, problems_of
from mlmx.errors import Problem, UserError, nearest, user_error
from mlmx.frozen import MISSING, STAGE_GROUPS, component_nodes, freeze

# Up to this many jobs, every combination of a sweep is composed before it starts; beyond, each value once.
_MAX_COMBINATIONS = 64


def conf_dir() -> Path:
    """Return the folder of mlmx's own configs: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def quoted(value: object) -> str:
    """Return a value as Hydra's override grammar reads it back, whatever characters it has."""
    text = str(value).replace("\\'", "\\\\'").replace("'", "\\'")
    if text.endswith("\\"):
        text += "\\"
    return f"'{text}'"


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


@dataclass(frozen=True, slots=True)
class Command:
    """What is to be composed.

    Attributes:
        name: ``pretrain``, ``finetune``, ``eval`` or ``run``.
        config_name: the primary config, by default that of the command.
        config_dir: the user's own folder of configs.
    """

    name: str
    config_name: str
    config_dir: Path | None = None


class _SharedRepository(CachingConfigRepository):  # type: ignore[misc, unused-ignore]
    """Reads each file once for all compositions of a command; Hydra copies its repository, and with it the cache, for each."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedRepository:
        return self

    def load_config(self, config_path: str) -> Any:
        # Composing merges into what is loaded, so that a composition would find the choices of the one before it.
        return copy.deepcopy(super().load_config(config_path))


class Composer:
    """Composes configs as Hydra does, without running anything."""

    def __init__(self, command: Command) -> None:
        config_dir = command.config_dir
        version.setbase("1.3")
        setup_globals()
        self.command = command
        self.config_name = command.config_name
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        search_path = create_config_search_path(str(conf_dir()))
        if config_dir is not None:
            if not config_dir.is_dir():
                raise user_error("--config-dir", f"there is no such folder: {config_dir}")
            search_path.prepend(
                provider="command-line", path=f"file://{config_dir.resolve()}", anchor=SearchPathQuery(provider="schema")
            )
        self.loader = ConfigLoaderImpl(search_path)
        self.loader.repository = _SharedRepository(self.loader.repository)
        self.repository = self.loader.repository
        self._parser = OverridesParser.create(config_loader=self.loader)

    def compose(self, overrides: list[str]) -> DictConfig:
        """Return the composed config, Hydra's own node included; not to be changed."""
        key = tuple(overrides)
        if key not in self._composed:
            self._composed[key] = self.loader.load_configuration(self.config_name, overrides, run_mode=RunMode.RUN)
        return self._composed[key]

    def parse(self, line: str) -> Override:
        """Return a parsed override."""
        return self._parser.parse_overrides([line])[0]

    def options(self, group: str) -> list[str]:
        """Return the options of a group."""
        return [str(option) for option in self.repository.get_group_options(group)]

    def groups(self) -> list[str]:
        """Return the groups of the first level."""
        return [str(group) for group in self.repository.get_group_options("", ObjectType.GROUP)]

    def complete(self, words: Sequence[str], word: str) -> list[str]:
        """Return the overrides that ``word`` can be completed to, after the overrides ``words``."""
        key, equals, value = word.partition("=")
        group = key.lstrip("+").partition("@")[0]
        if equals and self.repository.group_exists(group):
            done = max(value.rfind(","), value.rfind("[")) + 1  # of several options, the last one is being typed
            return [f"{key}={value[:done]}{option}" for option in self.options(group) if option.startswith(value[done:])]
        found = DefaultCompletionPlugin(self.loader)._query(self.config_name, " ".join([*words, word]))
        typed = word.rpartition(".")[2]
        return [match for match in found if typed.startswith("_") or "._" not in match]


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
    parsed = list(_parse(composer, overrides, problems))
    multirun = multirun or any(o.key_or_group == "hydra.mode" and "MULTIRUN" in str(o.input_line) for o in parsed)
    for override in parsed:
        if override.is_sweep_override() and not multirun:
            told = "several values: add -m to sweep over them, or write [a,b] for a list, or quote a string."
            problems.append(Problem(override.get_key_element(), told))
    alternatives = [list(_alternatives(composer, override)) for override in parsed]
    invalid = {i for i, values in enumerate(alternatives) if not _choices_exist(composer, values, problems)}
    kept = [i for i in range(len(parsed)) if i not in invalid and (multirun or not parsed[i].is_sweep_override())]
    rewritten: dict[int, str] = {}
    configs = []
    for job in _combinations([alternatives[i] for i in kept]):
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
    return [problem for where, node in component_nodes(config).items() for problem in problems_of(node, where)]


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
            problems.append(Problem(str(error.full_key or key), _first_line(error)))
    if problems:
        return {}, list(dict.fromkeys(problems))
    return freeze(plain, choices, command=command, overridden=overridden)


def _missing_inputs(composed: DictConfig) -> list[str]:
    inputs = composed.get("inputs") or {}
    return [f"inputs.{name}" for name in inputs if OmegaConf.is_missing(inputs, name)]


def _plain(composed: DictConfig, key: str) -> Any:
    if OmegaConf.is_missing(composed, key):
        return MISSING
    value = composed[key]
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=False) if OmegaConf.is_config(value) else value


# --- overrides ------------------------------------------------------------------------------------------------------------------


def _parse(composer: Composer, overrides: Sequence[str], problems: list[Problem]) -> Iterator[Override]:
    for line in overrides:
        try:
            yield composer.parse(line)
        except HydraException as error:
            told = "an override is key=value." if "=" not in line else f"cannot be parsed: {_first_line(error)}."
            problems.append(Problem(line, told))


def _alternatives(composer: Composer, override: Override) -> Iterator[Override]:
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


def _combinations(alternatives: Sequence[Sequence[Override]]) -> Iterator[Sequence[Override]]:
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


def _is_choice(composer: Composer, override: Override) -> bool:
    return not isinstance(override.value(), dict) and composer.repository.group_exists(override.key_or_group)


def _choices_exist(composer: Composer, alternatives: Sequence[Override], problems: list[Problem]) -> bool:
    """Check that what an override selects exists, for each of its values."""
    valid = True
    for override in alternatives:
        if not _is_choice(composer, override):
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


def _check_job(
    composer: Composer, job: Mapping[int, Override], rewritten: dict[int, str], problems: list[Problem], *, keys_only: bool
) -> dict[str, Any] | None:
    """Check one job, collect its problems, and return its frozen config if it comes that far."""
    choices = {i: override for i, override in job.items() if _is_choice(composer, override)}
    settings = {i: override for i, override in job.items() if i not in choices}
    try:
        own = {i: override for i, override in choices.items() if _selects_for_stage(override) and not override.is_delete()}
        if own:
            others = [str(override.input_line) for i, override in choices.items() if i not in own]
            known = composer.compose(others).hydra.runtime.choices
            for i, override in own.items():
                # A stage may select an option of its own where the config so far has none: to Hydra that is an addition.
                rewritten[i] = "" if f"{override.key_or_group}@{override.package}" in known else "+"
        lines = [_line(override, rewritten.get(i)) for i, override in choices.items()]
        base = composer.compose(lines)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        given = " ".join(str(override.input_line) for override in choices.values())
        problems.append(Problem(given or composer.config_name, _first_line(error)))
        return None
    headers = _header_problems(composer, lines, base)
    problems += headers
    composed = copy.deepcopy(base)
    for i, override in settings.items():
        problem = _key_problem(composer, base, override)
        if problem is None:
            if not override.is_delete() and _open_mapping(base, override.key_or_group):
                rewritten[i] = "++"
                override = composer.parse(_line(override, "++"))
            try:
                ConfigLoaderImpl._apply_overrides_to_config([override], composed)
            except (HydraException, OmegaConfBaseException) as error:
                problem = Problem(override.key_or_group, _first_line(error))
        problems += [problem] if problem else []
    if keys_only or headers:
        return None
    overridden = [override.get_key_element().lstrip("+~") for override in job.values()]
    config, found = _freeze(composed, composer.command.name, overridden)
    problems += found
    return config if "places" in config else None


def _line(override: Override, prefix: str | None) -> str:
    line = str(override.input_line)
    return line if prefix is None else prefix + line.lstrip("+")


def _selects_for_stage(override: Override) -> bool:
    return (override.package or "").startswith("stages.")


def _open_mapping(base: DictConfig, key: str) -> bool:
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


def _key_problem(composer: Composer, base: DictConfig, override: Override) -> Problem | None:
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
        if adding_to_hydra or (parts[0] != "hydra" and _open_mapping(base, key) and not (parts[0] == "stages" and is_node(node))):
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


def _header_problems(composer: Composer, choices: list[str], base: DictConfig) -> list[Problem]:
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


def _first_line(error: BaseException) -> str:
    # A YAML error names its file and line in the lines that follow.
    text = " ".join(str(error).split()) if isinstance(error, YAMLError) else str(error).strip().partition("\n")[0]
    return text or type(error).__name__
