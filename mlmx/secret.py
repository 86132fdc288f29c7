"""Secrets stay in the environment: settings are written into ``outputs``, so that one that holds a secret is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlmx.errors import Problem

_VARIABLE = re.compile(r"(?i)(api_?key|_key|token|secret|password|credentials?)$")
_SETTING = re.compile(r"(?i)(^|\.)(\w*api_?key|(hf|wandb|auth|access|bearer)_?token|token|\w*secret|\w*password)$")
# Shorter values, such as the number of something, turn up in settings by chance.
_MIN_CHARACTERS = 8


def secret_problems(settings: Any, where: str = "") -> Iterator[Problem]:
    """Yield a problem for each setting that holds the value of an environment variable that is named like a secret.

    Args:
        settings: a config, or a part of one.
        where: its place, for messages, which never show a value.
    """
    if isinstance(settings, Mapping):
        for key, inner in settings.items():
            yield from secret_problems(str(key), where)
            yield from secret_problems(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(settings, list | tuple):
        for i, inner in enumerate(settings):
            yield from secret_problems(inner, f"{where}[{i}]")
    elif isinstance(settings, str):
        for name, value in _secrets().items():
            if value in settings:
                message = f"holds the value of {name}, and settings are written into outputs; the environment is where it belongs."
                yield Problem(where, message)


def secret_overrides(overrides: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for each override that gives a secret, going by the name of its key, or by its value."""
    for line in overrides:
        key, _, value = line.lstrip("+~").partition("=")
        if value and _SETTING.search(key):
            yield Problem(key, "looks like a secret, and overrides are written into outputs; set an environment variable instead.")
        else:
            yield from secret_problems(line, key)


def _secrets() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if len(value) >= _MIN_CHARACTERS and _VARIABLE.search(name)}
