"""Saying what a run would do, without doing it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from mlmx.driver import command, execute
from mlmx.driver.contents import source_hash
from mlmx.driver.directories import Placed
from mlmx.driver.lease import drain
from mlmx.driver.say import say, show_table
from mlmx.fingerprint import canonical_document
from mlmx.stage import StageDir

_ESTIMATE = "mlmx.training.estimate"
_ESTIMATE_SECONDS = 300.0
_CAPTION = (
    "Where the stages before a training are not finished, its numbers are those of the encoder and its language-model head, "
    "without what an objective adds (a generator, a decoder)."
)
_ABSENT = "-"
_MEBIBYTE = 2**20


def plan(config: Mapping[str, Any]) -> None:
    """Print the stages of a run: which are finished, what makes the others new, what they cost.

    Args:
        config: the frozen config.

    Raises:
        UserError: if inputs do not exist, groups contradict each other, or a stage to do has wrong settings.
    """
    placed = execute.checked_stages(config)
    estimates = _estimates([one for one in placed if one.stage.kind in ("pretrain", "finetune")])
    table = Table(
        "stage",
        "state",
        "budget",
        "parameters",
        "tokens",
        "steps",
        "FLOPs",
        "memory",
        title=f"plan of {config['name']}",
        title_justify="left",
        caption=None if all(costs.get("counted") for costs in estimates.values()) else _CAPTION,
        caption_justify="left",
    )
    for one in placed:
        costs = estimates.get(one.fingerprint, {})
        table.add_row(one.label, _state(one), *(_told(costs.get(key), key) for key in _COSTS))
    show_table(table)
    for one in placed:
        if problem := estimates.get(one.fingerprint, {}).get("problem"):
            say(f"{one.label} would fail: {problem}")
        if not one.directory.finished:
            _say_difference(one)


# Beyond these it is another corpus or model, and what it differs in is not why it must run.
_MOST_DIFFERENCES = 10
_COSTS = ("budget", "num_parameters", "tokens", "steps", "flops", "memory_bytes")


def _told(value: Any, key: str) -> str:
    if value is None:
        return _ABSENT
    if key == "budget":
        return str(value)
    if key == "flops":
        return f"{value:.2g}"
    return f"{value / _MEBIBYTE:,.0f} MiB" if key == "memory_bytes" else f"{value:,}"


def _state(one: Placed) -> str:
    directory = one.directory
    if directory.finished:
        return "finished" if directory.damage(thorough=False) is None else "damaged"
    state = str(directory.status().get("state", "to do"))
    # Who is killed outright leaves the word "running" behind.
    return "interrupted" if state == "running" and drain(directory, lambda _: None, 0.0) else state


def _say_difference(one: Placed) -> None:
    """Say what makes a stage differ from its nearest finished neighbour of the same kind and work."""
    own = dict(_flat(one.document))
    nearest: tuple[int, str, list[str]] | None = None
    for directory in _finished(one):
        differences = _differences(dict(_flat(_document(directory))), own, one, directory)
        if nearest is None or len(differences) < nearest[0]:
            nearest = (len(differences), directory.path.name, differences)
    if nearest is None:
        say(f"{one.label}: no finished stage of this kind yet")
        return
    say(f"{one.label}: differs from {nearest[1]} in")
    for line in nearest[2][:_MOST_DIFFERENCES]:
        say(f"  {line}")
    if (more := len(nearest[2]) - _MOST_DIFFERENCES) > 0:
        say(f"  ... and {more} more")


def _finished(one: Placed) -> Iterator[StageDir]:
    """Yield the finished stages of the same kind that do the same sort of work."""
    for path in sorted(one.folder.glob(f"{one.stage.kind}-*")):
        directory = StageDir(path)
        if directory.finished and set(directory.config()["spec"]) & set(one.stage.spec) - {"seed", "model"}:
            yield directory


def _document(directory: StageDir) -> dict[str, Any]:
    config = directory.config()
    parents = {role: _parent_fingerprint(directory, role) for role in config["parents"]}
    return canonical_document(config["kind"], config["spec"], config["inputs"], parents)


def _parent_fingerprint(directory: StageDir, role: str) -> str:
    parent = directory.parent(role)
    if parent is None or not parent.config_path.exists():
        return "gone"
    return str(parent.config()["fingerprint"])


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], one: Placed, directory: StageDir) -> list[str]:
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if before == after:
            continue
        setting = key.removeprefix("spec.")
        if key.startswith("parents."):
            role = key.removeprefix("parents.")
            names = directory.config()["parents"].get(role, _ABSENT), one.parents[role].label if role in one.parents else _ABSENT
            lines.append(f"{role}: {names[0]} -> {names[1]}")
        elif setting.endswith(".content"):
            lines.append(f"{setting.removesuffix('.content')}: other content")
        else:
            lines.append(f"{setting}: {before} -> {after}")
    return lines


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted setting, value) of a nested document."""
    if isinstance(value, Mapping) and "content" not in value:
        for key, inner in value.items():
            yield from _flat(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, Mapping):
        yield f"{where}.content", value["content"]
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{where}.{i}")
    else:
        yield where, value


def _estimates(placed: Sequence[Placed]) -> dict[str, dict[str, Any]]:
    """Ask a process of the worker's side what training stages cost; fingerprint -> numbers."""
    if not placed:
        return {}
    source = source_hash()
    records = []
    for one in placed:
        record = one.config(source)
        record["parents"] = {role: str(parent.directory.path.absolute()) for role, parent in one.parents.items()}
        records.append(record)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        try:
            answer = command.run_attached(_ESTIMATE, text=json.dumps(records), output=errors, timeout_seconds=_ESTIMATE_SECONDS)
            costs: list[dict[str, Any]] = json.loads(answer)
        except (command.StageFailedError, json.JSONDecodeError) as error:
            errors.seek(0)
            reason = (errors.read().strip().split("\n") or [""])[-1]
            say(f"warning: parameters and memory are not known: {error}: {reason}")
            return {}
    return {one.fingerprint: cost for one, cost in zip(placed, costs, strict=True)}
