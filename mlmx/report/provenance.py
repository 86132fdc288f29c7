"""With what the runs of a report were made: commits, versions, hardware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlmx.report.runs import Run

_PACKAGES = ("python", "torch", "transformers")


def provenance_notes(runs: Sequence[Run]) -> list[str]:
    """Return a line for each set of commit, versions and machine that runs with a score were made with, the newest last."""
    lines = dict.fromkeys(line for run in runs if run.scores and (line := _told(run.made_with)))
    return [f"Made with {line}." for line in lines]


def _told(record: Mapping[str, Any]) -> str:
    git, versions, hardware = (record.get(part) or {} for part in ("git", "versions", "hardware"))
    parts = []
    if git:
        parts.append(f"mlmx at commit {git['commit'][:7]}{' and changes (git.diff of the run)' if git.get('dirty') else ''}")
    elif versions.get("mlmx"):
        parts.append(f"mlmx {versions['mlmx']}")
    parts += [f"{package} {versions[package]}" for package in _PACKAGES if versions.get(package)]
    if hardware:
        num_gpus = len(hardware.get("gpus") or [])
        parts.append(f"{hardware['machine']}, {hardware['cores']} cores, {f'{num_gpus} GPUs' if num_gpus else 'no GPU'}")
    return ", ".join(parts)
