"""From a component's YAML node to the object: the constructor is the schema.

A node is a mapping with a ``_target_``. Its other keys are the keyword-only parameters of the constructor; positional parameters
are runtime objects (an encoder, a tokenizer) that the caller supplies. Keys of the form ``_x_`` describe the component to mlmx and
never reach the constructor:

``_version_``    part of the fingerprint; raised when the component's numbers change.
``_inputs_``     settings that name files or folders (or a hub repository): their content is hashed, not their path.
``_no_effect_``  settings without effect on results, left out of the fingerprint.
``_tasks_``      settings of a task that may name another task of the run: it comes first, and leaves something to read.
``_about_``      of a task: where its data come from, and its main score; see ``mlmx.about``.
``_needs_parallel_``  of an objective: whether it needs pairs: true, or the settings, with their values, with which it does.
``_needs_dropout_``  of an objective: whether it needs a training with dropout; likewise.
``_drops_head_`` of an objective: whether it leaves no language-model head; likewise.
``_follows_progress_``  of an objective or schedule: how a batch is made depends on how far the training is.
``_statistics_`` settings of an objective that are statistics of its corpus: each is collected by a stage of its own.
``_no_effect_on_training_``  settings of a task that say only how it judges: changed, it judges what was fine-tuned before.

A node inside another one is built first, unless its class takes runtime objects: then the outer constructor gets it
:class:`Unbuilt`, and builds it when it has them.

Settings that contradict each other are told before anything starts. A constructor without runtime objects tells them itself; a
class that needs some, such as an objective, may have a static method ``check_settings`` that takes the settings and tells.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args

from pydantic import Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from mlmx.errors import Problem, UserError, nearest
from mlmx.target import adapter_of, imported, load_target, names_of, num_runtime_objects, settings_parameters, wrong_kind

# Types of settings, with the range that the checker enforces.
Ratio = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]

# What a setting is that the user must give.
MISSING = "???"

# What the component of a stage's slot must be; named, since they are imported only by what checks or builds one.
_KINDS = {
    "model": "mlmx.models.load.Source",
    "tokenizer": "mlmx.data.tokenizer.TrainedTokenizer",
    "corpus": "mlmx.data.corpus.Corpus",
    "corpora": "mlmx.data.corpus.Corpus",
    "annotator": "mlmx.data.corpus.Annotator",
    "statistic": "mlmx.data.statistic.Statistic",
    "objective": "mlmx.objectives.objective.Objective",
    "trainer": "mlmx.training.trainer.Trainer",
    "task": "mlmx.tasks.task.Task",
}

# Slots whose constructors take their settings down and read no more than dictionaries, so that building one is a way to find
# settings that contradict each other. An objective's needs an encoder.
_DESCRIBED = ("model", "tokenizer", "corpus", "corpora", "annotator", "statistic", "trainer", "task")

# What YAML has besides components.
_PLAIN = (str, int, float, list, dict, type(None))


Component = TypeVar("Component")


class Unbuilt(Generic[Component]):
    """A component inside another one that needs runtime objects, which the outer one has; ``Unbuilt[Objective]`` is its setting.

    Args:
        node: the component.
        where: its place in the config, for messages.
    """

    def __init__(self, node: Mapping[str, Any], where: str) -> None:
        self._node, self._where = node, where

    def build(self, *runtime: object) -> Component:
        """Build it with these positional arguments of its constructor."""
        component: Component = _build(self._node, runtime, self._where)
        return component

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # What is checked is the class of the node.
        (kind,) = get_args(source)
        return core_schema.is_instance_schema(kind)


def is_node(value: object) -> bool:
    """Tell whether a value is a component's node."""
    return isinstance(value, Mapping) and "_target_" in value


def is_description(key: str) -> bool:
    """Tell whether a key of a node describes the component to mlmx, as those of the form ``_x_`` do."""
    return key.startswith("_") and key.endswith("_")


def tasks_read_by(task: Mapping[str, Any]) -> dict[str, str]:
    """Return setting -> the other task of the run that a task's node names there."""
    return {setting: task[setting] for setting in task.get("_tasks_") or () if isinstance(task.get(setting), str)}


def listed_settings(value: Any, by: str, where: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (dotted setting, its key, its node) for every setting that a node in a spec lists under a key such as ``_inputs_``."""
    for place, node in mappings_in(value, where):
        for key in node.get(by) or ():
            yield (f"{place}.{key}" if place else key), key, node


def mappings_in(value: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (dotted setting, mapping) for every mapping in a spec, each before those inside it."""
    if isinstance(value, dict):
        yield where, value
    elif not isinstance(value, list | tuple):
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from mappings_in(inner, f"{where}.{key}" if where else str(key))


def statistics_of(objective: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return dotted setting -> node of the statistics that an objective, or one inside it, needs of its corpus."""
    return {where: node[key] for where, key, node in listed_settings(objective, "_statistics_") if is_node(node.get(key))}


def settings_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node's settings: its keys but for those that describe it."""
    return {key: value for key, value in node.items() if not is_description(key)}


def problems_of(node: Mapping[str, Any], where: str, slot: str | None = None) -> list[Problem]:
    """Check a node, and the nodes inside it, against the constructors; and, where those only take settings down, by building it.

    Args:
        node: the component.
        where: its place in the config, such as ``objective``, for messages.
        slot: the key under which a stage has it, such as ``objective``, if its class is to be checked too.
    """
    try:
        target = load_target(node["_target_"], where)
    except UserError as error:
        return list(error.problems)
    if slot is not None and inspect.isclass(target):
        kind = imported(_KINDS[slot])
        if not issubclass(target, kind):
            return [Problem(f"{where}._target_", *wrong_kind(target, kind))]
    settings = settings_of(node)
    parameters = settings_parameters(target)
    problems = [
        Problem(
            f"{where}.{key}",
            f"{node['_target_']} has no such setting; where an experiment gives it, ~{where}.{key} takes it out.",
            nearest(key, parameters),
        )
        for key in settings
        if key not in parameters
    ]
    for name, parameter in parameters.items():
        if name not in settings:
            if parameter.default is inspect.Parameter.empty:
                problems.append(Problem(f"{where}.{name}", f"missing; {node['_target_']} needs it."))
            continue
        for place, inner in _nested_nodes(settings[name], f"{where}.{name}"):
            problems += problems_of(inner, place)
        problems += _value_problems(target, parameter, settings[name], f"{where}.{name}")
    if problems or _has_missing(settings):
        return problems  # What must be given is told for itself.
    try:
        if slot in _DESCRIBED:
            # A model's tokenizer is not there yet.
            _build(node, [None] * num_runtime_objects(target), where)
        elif (check := getattr(target, "check_settings", None)) is not None:
            with placed(where, parameters):
                check(**_arguments(node, target, where))
    except UserError as error:
        return list(error.problems)
    return []


def build(node: Mapping[str, Any], *runtime: object, where: str = "config") -> Any:
    """Build a node, innermost nodes first.

    Args:
        node: the component; its settings are converted to the types of the constructor (lists to tuples, strings to paths).
        *runtime: the positional arguments of the outermost constructor.
        where: its place in the config, for messages.

    Raises:
        UserError: if a setting is missing, unknown, of the wrong type or out of range.
    """
    problems = problems_of(node, where)
    if problems:
        raise UserError(problems)
    return _build(node, runtime, where)


def _build(node: Mapping[str, Any], runtime: Sequence[object], where: str) -> Any:
    target = load_target(node["_target_"], where)
    arguments = _arguments(node, target, where)
    with placed(where, settings_parameters(target)):
        return target(*runtime, **arguments)


def _arguments(node: Mapping[str, Any], target: Callable[..., Any], where: str) -> dict[str, Any]:
    """Return a node's settings as the types of the constructor."""
    parameters = settings_parameters(target)
    arguments = {}
    for name, value in settings_of(node).items():
        if next(_nested_nodes(value, where), None) is not None:
            arguments[name] = _build_nested(value, f"{where}.{name}")
        else:
            arguments[name] = adapter_of(target, parameters[name]).validate_json(json.dumps(value), strict=True)
    return arguments


@contextmanager
def placed(where: str, parameters: Mapping[str, Any]) -> Iterator[None]:
    """Name settings by their place in the config in what is raised.

    Args:
        where: the place of the component.
        parameters: its settings, by name.
    """
    try:
        yield
    except UserError as error:
        raise UserError([_in_place(problem, where, parameters) for problem in error.problems]) from error


def _in_place(problem: Problem, where: str, parameters: Mapping[str, Any]) -> Problem:
    """Name a setting by its place in the config, where the constructor knows it by the component's kind: ``corpus.path``."""
    if Path(problem.where).is_absolute():
        return problem  # a file, whose name may hold anything
    parts = problem.where.split(".")
    for i, part in enumerate(parts[1:], start=1):
        if part.partition("[")[0] in parameters:
            return replace(problem, where=".".join([where, *parts[i:]]))
    return problem


def _build_nested(value: Any, where: str) -> Any:
    if is_node(value):
        needs_more = num_runtime_objects(load_target(value["_target_"], where))
        return Unbuilt[Any](value, where) if needs_more else _build(value, (), where)
    if isinstance(value, Mapping):
        return {key: _build_nested(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [_build_nested(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
    return value


def _has_missing(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return bool(value == MISSING) or any(_has_missing(one) for one in inner)


def _nested_nodes(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if is_node(value):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _nested_nodes(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _nested_nodes(inner, f"{where}[{i}]")


def _value_problems(target: Callable[..., Any], parameter: inspect.Parameter, value: Any, where: str) -> list[Problem]:
    adapter = adapter_of(target, parameter)
    try:
        if next(_nested_nodes(value, where), None) is None:
            adapter.validate_json(json.dumps(value), strict=True)
        else:
            adapter.validate_python(_with_blanks(value))
    except ValidationError as error:
        return [Problem(".".join([where, *map(str, detail["loc"])]), *_told(detail, names_of(target))) for detail in error.errors()]
    except UserError:
        pass  # of a nested node that is checked by itself
    return []


def _with_blanks(value: Any) -> Any:
    """Put an object of its class, without any content, in the place of each nested node."""
    if is_node(value):
        target = load_target(value["_target_"], "")
        return object.__new__(target) if inspect.isclass(target) else None
    if isinstance(value, Mapping):
        return {key: _with_blanks(inner) for key, inner in value.items()}
    return [_with_blanks(inner) for inner in value] if isinstance(value, list) else value


def _told(detail: Mapping[str, Any], names: Mapping[str, Any]) -> tuple[str, str | None]:
    given = detail["input"]
    if detail["type"] == "needs_python_object":
        return f"{given!r} is not valid: a component is needed, a mapping with a _target_.", None
    needed = names.get(detail.get("ctx", {}).get("class", ""))
    if inspect.isclass(needed) and not isinstance(given, _PLAIN):
        return wrong_kind(type(given), needed)
    # Another component has no content yet that could be shown.
    return f"{(given if isinstance(given, _PLAIN) else type(given).__name__)!r} is not valid: {detail['msg']}.", None
