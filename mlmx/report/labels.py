"""Naming configurations by what sets them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from mlmx.build import is_node
from mlmx.report.runs import canonical

# The option that --from selects: what is given is called by its own name.
_GIVEN_MODEL = "pretrained"


def differences(configurations: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return for each configuration the settings in which it differs from another one: dotted key -> value.

    A component is told by its option's name; its settings are compared among components of the same name only. A stage or a
    task is compared among the configurations that have it; which have a stage, the setting ``chain`` tells.
    """
    found: list[dict[str, Any]] = [{} for _ in configurations]
    _compare(dict(enumerate(configurations)), "", found)
    # In one order for all rows, as found; a value that one row has and others lack shows only there.
    keys = list(dict.fromkeys(key for settings in found for key in settings))
    texts = {key: _texts({i: settings[key] for i, settings in enumerate(found) if key in settings}) for key in keys}
    return [{key: texts[key][i] for key in keys if i in texts[key]} for i in range(len(configurations))]


def naming(settings: Sequence[Mapping[str, str]]) -> tuple[list[str], dict[str, str]]:
    """Choose from the settings in which configurations differ those that name them.

    A setting that always goes with another one (``mono.objective`` where each ``para.objective`` has its own) says nothing more.
    The model is always kept, and comes first; objectives are kept rather than other settings, later stages rather than earlier
    ones, and tasks last of all. A setting of a task is known only to configurations that were judged by the task.

    Returns:
        The settings that name, and each of the others -> the setting that it goes with.
    """
    keys = sorted(dict.fromkeys(key for one in settings for key in one), key=lambda key: key != "model")
    goes_with: dict[str, str] = {}
    for key in sorted(keys, key=lambda key: (key.partition(".")[0] != "task", "objective" in key.split(".")[-1])):
        for other in reversed(keys):
            if key != "model" and other != key and other not in goes_with and _determines(other, key, settings):
                goes_with[key] = other
                break
    for key in goes_with:
        while goes_with[key] in goes_with:  # what it goes with was itself left out later
            goes_with[key] = goes_with[goes_with[key]]
    return [key for key in keys if key not in goes_with], goes_with


def _determines(key: str, other: str, settings: Sequence[Mapping[str, str]]) -> bool:
    told = [one for one in settings if other in one or not other.startswith("task.")]
    pairs = {(one.get(key), one.get(other)) for one in told}
    return len(pairs) == len({value for value, _ in pairs})


def flat(configuration: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return every setting of a configuration, dotted key -> value; a component's own value is its option's name."""
    settings: dict[str, str] = {}
    for key, value in configuration.items():
        if key in ("_target_", "_name_"):
            continue
        place = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if is_node(value):
                settings[place] = _text(value)
            settings |= flat(value, f"{place}.")
        else:
            settings[place] = _text(value)
    return settings


def shortened(key: str, *, single_stage: bool) -> str:
    """Return a key as a user thinks of it: ``objective`` for ``stages.pretrain.objective`` where each chain has one stage."""
    if not key.startswith("stages."):
        return key
    stage, _, rest = key.removeprefix("stages.").partition(".")
    return rest if single_stage else f"{stage}.{rest}"


def _compare(values: Mapping[int, Any], place: str, found: list[dict[str, Any]]) -> None:
    if len({canonical(value) for value in values.values()}) < 2:
        return
    if not all(isinstance(value, Mapping) for value in values.values()) or any(is_node(value) for value in values.values()):
        groups: dict[str, dict[int, Any]] = {}
        for i, value in values.items():
            groups.setdefault(_text(value), {})[i] = value
        if len(groups) > 1:
            for i, value in values.items():
                found[i][place] = value
        for group in groups.values():
            if all(isinstance(value, Mapping) for value in group.values()):
                _compare_keys(group, place, found)
    else:
        _compare_keys(values, place, found)


def _compare_keys(values: Mapping[int, Mapping[str, Any]], place: str, found: list[dict[str, Any]]) -> None:
    for key in dict.fromkeys(key for value in values.values() for key in value):
        if key in ("_target_", "_name_"):
            continue
        where = f"{place}.{key}" if place else key
        present = {i: value[key] for i, value in values.items() if key in value}
        if len(present) < len(values) and place not in ("stages", "task"):
            # A setting that only some know, such as one that was added later.
            for i, value in present.items():
                found[i][where] = value
        else:
            _compare(present, where, found)


def _texts(values: Mapping[int, Any]) -> dict[int, str]:
    # Paths by their last part, where that tells them apart.
    full = {i: _text(value) for i, value in values.items()}
    short = {i: PurePath(text).name if text.startswith("/") else text for i, text in full.items()}
    return short if len(set(short.values())) == len(set(full.values())) else full


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        if value.get("_name_") == _GIVEN_MODEL and value.get("source"):
            return _called(PurePath(value["source"]))
        return str(value.get("_name_") or str(value.get("_target_", "")).rpartition(".")[2] or canonical(value))
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return "+".join(_text(item) for item in value) or "none"
    return "none" if value is None else canonical(value)


def _called(source: PurePath) -> str:
    return source.parent.name if source.name == "encoder" else source.name  # a stage's folder rather than what lies in it
