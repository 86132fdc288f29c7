"""The class behind a ``_target_``, and what its constructor asks for: keyword-only parameters are settings."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticUserError

from mlmx.errors import nearest, user_error

_allowed_packages = ["mlmx"]


def allow_package(name: str) -> None:
    """Let ``_target_`` name classes of a plug-in package, which the user declared with ``plugins``."""
    if name not in _allowed_packages:
        _allowed_packages.append(name)


def load_target(path: str, where: str) -> Callable[..., Any]:
    """Import what a ``_target_`` names.

    Args:
        path: as ``mlmx.tasks.glue.Glue``.
        where: the node's place in the config, for messages.

    Raises:
        UserError: if it cannot be imported, cannot be built, or lies outside mlmx and the plug-ins.
    """
    package = str(path).partition(".")[0]
    if package not in _allowed_packages:
        message = f"{path!r} lies outside mlmx; to use a package of your own, declare it with plugins=[{package}]."
        raise user_error(f"{where}._target_", message)
    try:
        target: Callable[..., Any] = imported(path)
        if not inspect.isclass(target) and not inspect.isfunction(target):
            raise TypeError("it is no class")
        if inspect.isabstract(target):
            raise TypeError("it is abstract")
        if target.__module__.partition(".")[0] not in _allowed_packages:
            raise TypeError(f"it is {target.__module__}.{target.__qualname__}, which was only imported there")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise user_error(f"{where}._target_", f"{path!r} cannot be used: {error}.") from error
    return target


def imported(path: str) -> Any:
    """Return what a dotted path names, importing its module."""
    module_name, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module_name), name)


def wrong_kind(given: type, needed: type) -> tuple[str, str | None]:
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


def settings_parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the settings of a constructor: its keyword-only parameters, by name."""
    return {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def num_runtime_objects(target: Callable[..., Any]) -> int:
    """Return how many positional parameters a constructor has, which are not settings."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds for parameter in inspect.signature(target).parameters.values())


def adapter_of(target: Callable[..., Any], parameter: inspect.Parameter) -> TypeAdapter[Any]:
    """Return what checks and converts one setting, as its annotation says."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        # Resolved where the constructor is defined, one by one: positional parameters may name types that are imported only
        # for type checking.
        alone = SimpleNamespace(__annotations__={parameter.name: annotation})
        annotation = get_type_hints(alone, names_of(target), include_extras=True)[parameter.name]
    try:
        # Components are classes that pydantic knows nothing of: ``Annotator | None``.
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)  # a dataclass has a configuration of its own


def names_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the names that the annotations of a constructor may use."""
    function = target.__init__ if inspect.isclass(target) else target
    return vars(sys.modules[function.__module__])
