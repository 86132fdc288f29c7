"""The files, folders and hub repositories that settings name: what a component's ``_inputs_`` lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from mlmx.build import MISSING, listed_settings
from mlmx.errors import Problem, UserError, nearest


def input_settings(value: Any, where: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (dotted setting, its key, its node) for every setting that ``_inputs_`` names in a spec."""
    return listed_settings(value, "_inputs_", where)


def _matches(path: str) -> list[str]:
    """Return the files and folders that a path or a pattern names."""
    if Path(path).exists():
        return [path]
    return sorted(glob(path, recursive=True)) if has_magic(path) else []  # noqa: PTH207 - an absolute pattern


@contextmanager
def told_in_task(task: Mapping[str, Any] | None) -> Iterator[None]:
    """Name settings by their place in a task's node in what is raised: a component within knows itself only by its kind.

    Args:
        task: the node, if there is one: ``task data.folder`` becomes ``task.<name>.data.folder``, ``corpus.path``
            ``task.<name>.data.corpus.path``.
    """
    try:
        yield
    except UserError as error:
        if task is None:
            raise
        raise UserError([replace(problem, where=_place_in(task, problem.where)) for problem in error.problems]) from error


def _place_in(task: Mapping[str, Any], where: str) -> str:
    root = f"task.{task['name']}"
    if Path(where).is_absolute() or where.startswith(root):
        return where
    setting = where.rpartition(".")[2].partition("[")[0]
    places = [place for place in _places(task) if place.endswith(f".{setting}")]
    if len(places) == 1 and "." in where:
        return root + places[0]
    return where.replace("task data", f"{root}.data") if where.startswith("task data") else where


def _places(node: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{where}.{key}"
        if isinstance(value, Mapping):
            yield from _places(value, f"{where}.{key}")


def resolve_paths(spec: Mapping[str, Any]) -> None:
    """Make the files that settings name absolute, since a stage may be run from any folder."""
    for _, setting, node in input_settings(spec):
        if setting in node:
            node[setting] = _absolute(node[setting], hub="revision" in node)


def _absolute(value: Any, *, hub: bool) -> Any:
    if isinstance(value, list):
        return [_absolute(inner, hub=hub) for inner in value]
    if isinstance(value, Mapping):
        return {key: _absolute(inner, hub=hub) for key, inner in value.items()}
    if not isinstance(value, str) or value in (MISSING, ""):
        return value  # an empty path would become the current folder
    path = str(Path(value).expanduser().absolute())
    return path if _matches(path) or not hub else value


def path_problems(node: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Yield what is wrong with the files and folders that a component's settings name: missing ones, and empty files."""
    for place, setting, inner in input_settings(node, where):
        for value in _strings(inner.get(setting)):
            if not value:
                yield Problem(place, "is empty: the path of a file or folder is needed.")
            elif value != MISSING:
                found = [Path(match) for match in _matches(value)]
                if not found and "revision" not in inner:
                    yield Problem(place, f"there is no such file or folder: {value}", _nearest_path(value))
                yield from (
                    Problem(place, f"the file is empty: {path}") for path in found if path.is_file() and not path.stat().st_size
                )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | Mapping):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)


def _nearest_path(value: str) -> str | None:
    folder = Path(value).parent
    found = nearest(Path(value).name, (entry.name for entry in folder.iterdir())) if folder.is_dir() else None
    return str(folder / found) if found else None
