"""Write the pages of docs/ that tell what there is: one a config group, and one of the experiments.

python scripts/generate_docs.py           # write them
python scripts/generate_docs.py --check   # exit 1 if one is out of date
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from mlmx import listing

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "objective": "Objectives",
    "model": "Models",
    "corpus": "Corpora",
    "annotator": "Annotators",
    "task": "Tasks",
    "protocol": "Protocols",
    "trainer": "Trainer",
}
PLACES = {"task": "task.NAME", "protocol": "task.NAME.protocol"}
"""Where the settings of an option stand, where that is not the group's name."""


def node_of(path: Path) -> dict[str, Any] | None:
    """Return the component's node of a YAML file; None for a file that only selects others."""
    node = listing.node_of(path)
    return node if "_target_" in node else None


def target_of(node: dict[str, Any]) -> type:
    module, _, name = node["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def argument_docs(target: type) -> dict[str, str]:
    """Return setting -> its description, from the Args section of the constructor or the class, or a dataclass' Attributes."""
    text = (inspect.getdoc(target.__init__) or "") + "\n" + (inspect.getdoc(target) or "")
    found: dict[str, str] = {}
    for section in re.findall(r"(?:Args|Attributes):\n((?:    .*\n?|\n)+)", text):
        for name, description in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE):
            found.setdefault(name, " ".join(description.split()))
    return found


def value_text(value: Any) -> str:
    if isinstance(value, dict) and "_target_" in value:
        return f"`{value['_target_'].rpartition('.')[2]}`"
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix('...').strip()}`"


def settings_rows(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    described = argument_docs(target_of(node))
    for name, value in node.items():
        if not name.startswith("_"):
            yield f"| `{prefix}{name}` | {value_text(value)} | {described.get(name, '')} |".replace("\n", " ")
            if name in node.get("_statistics_", ()):
                yield from settings_rows(value, f"{prefix}{name}.")


def settings_table(node: dict[str, Any]) -> str:
    rows = list(settings_rows(node))
    return "\n".join(["| setting | value | meaning |", "|---|---|---|", *rows]) if rows else "No settings."


def page(group: str, title: str) -> str:
    folder = ROOT / "conf" / group
    nodes = {path.relative_to(folder).with_suffix("").as_posix(): node_of(path) for path in sorted(folder.rglob("*.yaml"))}
    parts = [
        f"# {title}",
        f"Generated from `conf/{group}/` by `scripts/generate_docs.py`. Choose one with `{group}=name`, change a setting with "
        f"`{PLACES.get(group, group)}.setting=value`.",
    ]
    kind = next(kind for kind, folder in listing.KINDS.items() if folder == group)
    options = {option.name: option for option in listing.options(kind, [ROOT / "conf"])}
    for name, node in nodes.items():
        if node is None:
            continue
        doc = inspect.getdoc(target_of(node)) or ""
        _, _, rest = doc.partition("\n\n")
        parts += [f"## {name}", options[name].summary]
        if (about := options[name].about) is not None:
            parts.append(str(about))
        details = re.split(r"\n\n?(?:Args|Attributes):\n", "\n\n" + rest)[0].strip()
        if details:
            parts.append("```text\n" + details + "\n```")
        parts.append(settings_table(node))
    return "\n\n".join(part if part.startswith("```") else part.replace("``", "`") for part in parts) + "\n"


def experiments_page() -> str:
    """Return what the experiments say of themselves; their indented lines are commands."""
    parts = [
        "# Experiments",
        "Generated from `conf/experiment/` by `scripts/generate_docs.py`. What an experiment leaves open, such as the paths of"
        " data, is given as `inputs.name=...`. What came out is in [results.md](results.md).",
    ]
    for file in sorted((ROOT / "conf" / "experiment").glob("*.yaml")):
        parts.append(f"## {file.stem}")
        for is_command, lines in groupby(listing.comment(file), key=lambda line: line.startswith(" ")):
            text = "\n".join(lines)
            parts.append(f"```\n{textwrap.dedent(text)}\n```" if is_command else text)
    return "\n\n".join(parts) + "\n"


def main() -> None:
    stale = []
    pages = {title: page(group, title) for group, title in PAGES.items()} | {"Experiments": experiments_page()}
    for title, text in pages.items():
        path = ROOT / "docs" / f"{title.lower()}.md"
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
    if stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `make docs`.")


if __name__ == "__main__":
    main()
