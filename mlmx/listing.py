"""What there is to select: options of the config groups, described by their classes' docstrings, without importing them."""

from __future__ import annotations

import ast
import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from mlmx.about import About, about, about_problems
from mlmx.errors import UserError

KINDS = {
    "objectives": "objective",
    "schedules": "schedule",
    "models": "model",
    "corpora": "corpus",
    "annotators": "annotator",
    "tasks": "task",
    "protocols": "protocol",
    "trainers": "trainer",
    "trackers": "tracker",
    "parallel": "parallel",
    "experiments": "experiment",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a group.

    Attributes:
        name: the word it is selected by.
        summary: the first line of its class's docstring, or the YAML's comment where the class does not tell options apart.
        about: where a task's data come from, and its main score; None where the YAML does not say.
    """

    name: str
    summary: str
    about: About | None


def options(kind: str, folders: Sequence[Path]) -> list[Option]:
    """Return the options of a kind, sorted by name.

    Args:
        kind: one of ``KINDS``.
        folders: config folders; earlier ones win.

    Raises:
        UserError: if what a YAML says under ``_about_`` is not what :class:`About` holds.
    """
    files: dict[str, Path] = {}
    for folder in folders:
        group = folder / KINDS[kind]
        for file in sorted(group.rglob("*.yaml")):
            files.setdefault(file.relative_to(group).with_suffix("").as_posix(), file)
    nodes = {name: node_of(file) for name, file in files.items()}
    targets: dict[str, str | None] = {name: node.get("_target_") for name, node in nodes.items()}
    shared = Counter(targets.values())
    found = []
    for name, file in sorted(files.items()):
        target = targets[name]
        docstring = summary_of(target) if target else ""
        remark = " ".join(line.strip() for line in comment(file))
        summary = remark if remark and (not docstring or shared[target] > 1) else docstring
        found.append(Option(name, summary, _about(nodes[name], name)))
    return found


def _about(node: Mapping[str, Any], name: str) -> About | None:
    if problems := list(about_problems(node, name)):
        raise UserError(problems)
    return about(node)


def node_of(file: Path) -> dict[str, Any]:
    """Return what a YAML says together with the options of its own group that it is based on."""
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    node: dict[str, Any] = {}
    for base in content.pop("defaults", ()):
        # An option in a folder below is one that is selected along with others, as ``glue`` selects ``glue/cola``.
        name = base.removesuffix("@_here_") if isinstance(base, str) else "_self_"
        if name != "_self_" and "/" not in name and (path := file.with_name(f"{name}.yaml")).exists():
            node |= node_of(path)
    return node | content


def summary_of(target: str) -> str:
    """Return the first line of the docstring of a class named by its dotted path, read from the source; "" if there is none."""
    module, _, name = target.rpartition(".")
    source = _source(module)
    if source is None:
        return ""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
        if isinstance(node, ast.ImportFrom) and node.level == 0 and any(name in (alias.asname, alias.name) for alias in node.names):
            # A package shows what one of its modules defines.
            return summary_of(f"{node.module}.{name}")
    return ""


def _source(module: str) -> Path | None:
    package, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(package)  # of the top level only: deeper, it would import what lies above
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    if not parts:
        return Path(spec.origin)
    base = Path(spec.origin).parent.joinpath(*parts)
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def comment(file: Path) -> list[str]:
    """Return the lines of the comment that a YAML begins with, indented as they are, without the package header."""
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    remarks = [line.removeprefix("#").removeprefix(" ").rstrip() for line in lines]
    return [remark for remark in remarks if not remark.startswith("@package")]
