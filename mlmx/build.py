"""From a component's YAML node to the object: the constructor is the schema.

A node is a mapping with a ``_target_``. Its other keys are the keyword-only parameters of the constructor; positional parameters
are runtime objects (an encoder, a tokenizer) that the caller supplies. Keys of the form ``_x_`` describe the component to mlmx and
never reach the constructor:

``_version_``    part of the fingerprint; raised when the component's numbers change.
``_inputs_``     settings that name files or folders (or a hub repository): their content is hashed, not their path.
``_no_effect_``  settings without effect on results, left out of the fingerprint.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from mlmx.errors import Problem, UserError, nearest, user_error

# Types of settings, with the range that the checker enforces.
Ratio = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]

_allowed_packages = ["mlmx"]


def allow_package(name: str) -> None:
    """Let ``_target_`` name classes of a plug-in package, which the user declared with ``plugins``."""
    if name not in _allowed_packages:
        _allowed_packages.append(name)


def is_node(value: object) -> bool:
    """Tell whether a value is a component's node."""
    return isinstance(value, Mapping) and "_target_" in value


def settings_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node's settings: its keys but for those of the form ``_x_``."""
    return {key: value for key, value in node.items() if not (key.startswith("_") and key.endswith("_"))}


def problems_of(node: Mapping[str, Any], where: str) -> list[Problem]:
    """Check a node, and the nodes inside it, against the constructors; builds nothing.

    Args:
        node: the component.
        where: its place in the config, such as ``objective``, for messages.
    """
    try:
        target = _target(node, where)
    except UserError as error:
        return list(error.problems)
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
        nested = list(_nested_nodes(settings[name], f"{where}.{name}"))
        for place, inner in nested:
            problems += problems_of(inner, place)
        if not nested:
            problems += _value_problems(target, parameter, settings[name], f"{where}.{name}")
    return problems


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


def _build(node: Mapping[str, Any], runtime: tuple[object, ...], where: str) -> Any:
    target = _target(node, where)
    parameters = _settings_parameters(target)
    arguments = {}
    for name, value in settings_of(node).items():
        if next(_nested_nodes(value, where), None) is not None:
            arguments[name] = _build_nested(value, f"{where}.{name}")
        else:
            arguments[name] = _adapter(target, parameters[name]).validate_json(json.dumps(value), strict=True)
    return target(*runtime, **arguments)


def _build_nested(value: Any, where: str) -> Any:
    if is_node(value):
        return _build(value, (), where)
    if isinstance(value, Mapping):
        return {key: _build_nested(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [_build_nested(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
    return value


def _nested_nodes(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if is_node(value):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _nested_nodes(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _nested_nodes(inner, f"{where}[{i}]")


def _target(node: Mapping[str, Any], where: str) -> Callable[..., Any]:
    path = node["_target_"]
    package = str(path).partition(".")[0]
    if package not in _allowed_packages:
        message = f"{path!r} lies outside mlmx; to use a package of your own, declare it with plugins=[{package}]."
        raise user_error(f"{where}._target_", message)
    module_name, _, name = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), name)
        if not inspect.isclass(target) and not inspect.isfunction(target):
            raise TypeError("it is no class")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise user_error(f"{where}._target_", f"{path!r} cannot be imported: {error}.") from error
    return target


def _settings_parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _adapter(target: Callable[..., Any], parameter: inspect.Parameter) -> TypeAdapter[Any]:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        # Evaluated where the constructor is defined, one by one: positional parameters may name types that are imported only
        # for type checking.
        function = target.__init__ if inspect.isclass(target) else target
        annotation = eval(annotation, vars(sys.modules[function.__module__]))  # noqa: S307 - our own source, not the user's
    try:
        # Components are classes that pydantic knows nothing of: ``Annotator | None``.
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)  # a dataclass has a configuration of its own


def _value_problems(target: Callable[..., Any], parameter: inspect.Parameter, value: Any, where: str) -> list[Problem]:
    try:
        _adapter(target, parameter).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return [
            Problem(".".join([where, *map(str, detail["loc"])]), f"{detail['input']!r} is not valid: {_message(detail)}.")
            for detail in error.errors()
        ]
    return []


def _message(detail: Mapping[str, Any]) -> str:
    if detail["type"] == "needs_python_object":
        return "a component is needed, a mapping with a _target_"
    return str(detail["msg"])
