"""From a component's YAML node to the object: the constructor is the schema.

A node is a mapping with a ``_target_``. Its other keys are the keyword-only parameters of the constructor; positional parameters
are runtime objects (an encoder, a tokenizer) that the caller supplies. Keys of the form ``_x_`` describe the component to mlmx and
never reach the constructor:

``_version_``    part of the fingerprint; raised when the component's numbers change.
``_inputs_``     settings that name files or folders (or a hub repository): their content is hashed, not their path.
``_no_effect_``  settings without effect on results, left out of the fingerprint.
``_no_effect_on_training_``  settings of a task that say only how it judges: changed, it judges what was fine-tuned before.

Settings that contradict each other are told before anything starts. A constructor without runtime objects tells them itself; a
class that needs some, such as an objective, may have a static method ``check_settings`` that takes the settings and tells.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from mlmx.errors import Problem, UserError, nearest, user_error

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
    "objective": "mlmx.objectives.objective.Objective",
    "trainer": "mlmx.training.trainer.Trainer",
    "task": "mlmx.tasks.task.Task",
}

# Slots whose constructors take their settings down and read no more than dictionaries, so that building one is a way to find
# settings that contradict each other. An objective's needs an encoder.
_DESCRIBED = ("model", "tokenizer", "corpus", "corpora", "annotator", "trainer", "task")

# What YAML has besides components.
_PLAIN = (str, int, float, list, dict, type(None))

_allowed_packages = ["mlmx"]


def allow_package(name: str) -> None:
    """Let ``_target_`` name classes of a plug-in package, which the user declared with ``plugins``."""
    if name not in _allowed_packages:
        _allowed_packages.append(name)


def is_node(value: object) -> bool:
    """Tell whether a value is a component's node."""
    return isinstance(value, Mapping) and "_target_" in value


def is_description(key: str) -> bool:
    """Tell whether a key of a node describes the component to mlmx, as those of the form ``_x_`` do."""
    return key.startswith("_") and key.endswith("_")


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
        target = _target(node["_target_"], where)
    except UserError as error:
        return list(error.problems)
    if slot is not None and inspect.isclass(target):
        kind = _imported(_KINDS[slot])
        if not issubclass(target, kind):
            return [Problem(f"{where}._target_", *_wrong_kind(target, kind))]
    settings = settings_of(node)
    parameters = _settings_parameters(target)
    problems = [
        Problem(f"{where}.{key}", f"{node['_target_']} has no such setting.", nearest(key, parameters))
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
            _build(node, [None] * _num_runtime_objects(target), where)
        elif (check := getattr(target, "check_settings", None)) is not None:
            with _placed(where, parameters):
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
    target = _target(node["_target_"], where)
    arguments = _arguments(node, target, where)
    with _placed(where, _settings_parameters(target)):
        return target(*runtime, **arguments)


def _arguments(node: Mapping[str, Any], target: Callable[..., Any], where: str) -> dict[str, Any]:
    """Return a node's settings as the types of the constructor."""
    parameters = _settings_parameters(target)
    arguments = {}
    for name, value in settings_of(node).items():
        if next(_nested_nodes(value, where), None) is not None:
            arguments[name] = _build_nested(value, f"{where}.{name}")
        else:
            arguments[name] = _adapter(target, parameters[name]).validate_json(json.dumps(value), strict=True)
    return arguments


@contextmanager
def _placed(where: str, parameters: Mapping[str, Any]) -> Iterator[None]:
    """Name settings by their place in the config in what is raised."""
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
        return _build(value, (), where)
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


def _target(path: str, where: str) -> Callable[..., Any]:
    package = str(path).partition(".")[0]
    if package not in _allowed_packages:
        message = f"{path!r} lies outside mlmx; to use a package of your own, declare it with plugins=[{package}]."
        raise user_error(f"{where}._target_", message)
    try:
        target: Callable[..., Any] = _imported(path)
        if not inspect.isclass(target) and not inspect.isfunction(target):
            raise TypeError("it is no class")
        if inspect.isabstract(target):
            raise TypeError("it is abstract")
        if target.__module__.partition(".")[0] not in _allowed_packages:
            raise TypeError(f"it is {target.__module__}.{target.__qualname__}, which was only imported there")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise user_error(f"{where}._target_", f"{path!r} cannot be used: {error}.") from error
    return target


def _imported(path: str) -> Any:
    module_name, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module_name), name)


def _wrong_kind(given: type, needed: type) -> tuple[str, str | None]:
    """Return what to tell of a class in a place for another kind of component, and the nearest class of that kind."""
    message = f"{_path_of(given)!r} is not valid: it is no {needed.__name__} ({_path_of(needed)})."
    return message, nearest(_path_of(given), map(_path_of, _concrete(needed)))


def _concrete(kind: type[Any]) -> Iterator[type[Any]]:
    """Yield the classes of a kind that are loaded and can be built."""
    if not inspect.isabstract(kind):
        yield kind
    for below in kind.__subclasses__():
        yield from _concrete(below)


def _path_of(target: type) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def _settings_parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _num_runtime_objects(target: Callable[..., Any]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds for parameter in inspect.signature(target).parameters.values())


def _adapter(target: Callable[..., Any], parameter: inspect.Parameter) -> TypeAdapter[Any]:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        # Resolved where the constructor is defined, one by one: positional parameters may name types that are imported only
        # for type checking.
        alone = SimpleNamespace(__annotations__={parameter.name: annotation})
        annotation = get_type_hints(alone, _names_of(target), include_extras=True)[parameter.name]
    try:
        # Components are classes that pydantic knows nothing of: ``Annotator | None``.
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)  # a dataclass has a configuration of its own


def _names_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the names that the annotations of a constructor may use."""
    function = target.__init__ if inspect.isclass(target) else target
    return vars(sys.modules[function.__module__])


def _value_problems(target: Callable[..., Any], parameter: inspect.Parameter, value: Any, where: str) -> list[Problem]:
    adapter = _adapter(target, parameter)
    try:
        if next(_nested_nodes(value, where), None) is None:
            adapter.validate_json(json.dumps(value), strict=True)
        else:
            adapter.validate_python(_with_blanks(value))
    except ValidationError as error:
        return [
            Problem(".".join([where, *map(str, detail["loc"])]), *_told(detail, _names_of(target))) for detail in error.errors()
        ]
    except UserError:
        pass  # of a nested node that is checked by itself
    return []


def _with_blanks(value: Any) -> Any:
    """Put an object of its class, without any content, in the place of each nested node."""
    if is_node(value):
        target = _target(value["_target_"], "")
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
        return _wrong_kind(type(given), needed)
    return f"{given!r} is not valid: {detail['msg']}.", None
