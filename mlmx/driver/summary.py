"""The record of a run: ``config.yaml``, ``overrides.yaml`` and ``summary.json`` in its own folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from rich.table import Table

from mlmx.about import about
from mlmx.driver.directories import Placed
from mlmx.driver.lease import visible_gpus
from mlmx.driver.say import show_table
from mlmx.errors import UserError, nearest, user_error
from mlmx.stage import error_to_json, now, write_atomically

_PACKAGES = ("mlmx", "torch", "transformers", "tokenizers", "datasets", "hydra-core", "numpy", "wandb")


class Summary:
    """Collects what a run did.

    Args:
        run_dir: the run's folder; made if need be.
        config: the frozen config.
        overrides: what the user typed.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
        self._run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / "config.yaml", yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True))
        write_atomically(run_dir / "overrides.yaml", yaml.safe_dump(list(overrides), allow_unicode=True))
        self._stages: list[dict[str, Any]] = []
        self._scores: list[dict[str, Any]] = []
        self._record: dict[str, Any] = {
            "name": config["name"],
            "command": config.get("command") or shlex.join(["mlmx", *sys.argv[1:]]),
            "overrides": list(overrides),
            "config": {key: value for key, value in config.items() if key != "command"},
            "seed": config["seed"],
            "status": "running",
            "error": None,
            "started": now(),
            "ended": None,
            "stages": self._stages,
            "scores": self._scores,
            "versions": _versions(),
            "git": _git(run_dir),
            "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "gpus": None},
        }
        self._write()

    def add(self, placed: Placed, reused: bool) -> None:
        """Take in a finished stage, with its scores if it is an evaluation."""
        directory = placed.directory
        stage = placed.stage
        if not reused and self._record["hardware"]["gpus"] is None:
            self._record["hardware"]["gpus"] = visible_gpus()
        self._stages.append(
            {
                "kind": stage.kind,
                "name": stage.name,
                "fingerprint": placed.fingerprint,
                "dir": directory.path.name,
                "reused": reused,
            }
        )
        if stage.kind == "eval":
            self._scores.extend(
                {**score, "stage": directory.path.name, "main": score["metric"] == self._main_metric(score["task"])}
                for score in directory.result()["scores"]
            )
        self._write()

    def write(self, status: str, error: BaseException | None = None) -> None:
        """Write how the run ended."""
        self._record |= {"status": status, "ended": now(), "error": error_to_json(error) if error is not None else None}
        self._write()

    def score(self, name: str) -> float:
        """Return the score called ``task/split/metric``.

        Raises:
            UserError: if the run has no such score.
        """
        scores = {f"{score['task']}/{score['split']}/{score['metric']}": score["value"] for score in self._scores}
        if name not in scores:
            raise _no_such_score(name, list(scores))
        return float(scores[name])

    def show(self) -> None:
        """Print the scores."""
        if not self._scores:
            return
        table = Table("task", "split", "metric", title=f"{self._record['name']}, seed {self._record['seed']}", title_justify="left")
        table.add_column("value", justify="right")
        table.add_column("trivial", justify="right")
        table.add_column("examples", justify="right")
        for score in self._scores:
            values = [f"{value:.4f}" if value is not None else "" for value in (score["value"], score.get("trivial"))]
            table.add_row(score["task"], score["split"], score["metric"], *values, str(score["num_examples"]))
        show_table(table)

    def _main_metric(self, task: str) -> str | None:
        told = about(self._record["config"]["task"][task])
        return None if told is None else told.metric

    def _write(self) -> None:
        write_atomically(self._run_dir / "summary.json", json.dumps(self._record, indent=1, ensure_ascii=False) + "\n")


def _no_such_score(name: str, names: list[str]) -> UserError:
    have = f"it has {', '.join(names)}" if names else "it has no scores"
    return user_error("sweep_metric", f"the run has no score {name!r}; {have}.", nearest(name, names))


def _plain(value: Any) -> Any:
    """Copy without shared parts, which YAML would write as anchors."""
    return json.loads(json.dumps(value))


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _git(run_dir: Path) -> dict[str, Any] | None:
    """Return the commit of mlmx's own checkout, and write down what was changed since; None where it is no checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True, timeout=30).stdout
            for command in (["rev-parse", "HEAD"], ["diff", "HEAD", "--", "mlmx", "conf"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if changes:
        (run_dir / "git.diff").write_text(changes, encoding="utf-8")
    return {"commit": commit.strip(), "dirty": bool(changes)}
