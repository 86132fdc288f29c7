"""A stage: what is to be done, and the files of its directory.

Driver and workers meet here and nowhere else. The driver writes ``config.yaml`` into a stage's directory and starts workers on it;
workers leave ``metrics.jsonl``, ``status.json``, the data they made and, last of all, ``result.json``. Imports no torch.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import yaml  # type: ignore[import-untyped]

from mlmx.errors import Problem, UserError, user_error
from mlmx.manifest import damage, manifest_of

DRIVER_VARIABLE = "MLMX_DRIVER"
"""Environment variable by which the driver tells workers ``pid start_time launch``; absent when a worker is run by hand."""

EXIT_USER_ERROR = 2
"""Exit code of a worker whose user can mend what went wrong."""

KINDS = ("prepare", "annotate", "collect", "pretrain", "finetune", "eval")

TRAINING_KINDS = ("pretrain", "finetune")
"""Stages that write checkpoints."""

PARALLEL_KINDS = (*TRAINING_KINDS, "eval")
"""Stages that may have several processes; the others are one process each."""

PRODUCTS = ("data", "tokenizer", "encoder", "model.safetensors", "predictions.jsonl", "contamination.jsonl", "config.yaml")
"""Files and folders of a stage that later stages and people rely on, where it has them."""

State = Literal["running", "failed", "finished"]


@dataclass(frozen=True, eq=False)
class Stage:
    """Something to be done, before anything is known about files.

    Attributes:
        kind: one of ``KINDS``.
        name: what people call it; part of the directory's name, not of the fingerprint.
        spec: the nodes that say what to do, as composed.
        parents: role -> the stage whose result it needs.
        execution: how it is run (``parallel``, ``tracker``, ``plugins``); without effect on results.
    """

    kind: str
    name: str
    spec: Mapping[str, Any]
    parents: Mapping[str, Stage] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def now() -> str:
    """Return the time in UTC, as status files hold it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, even after a power cut, finds the old content or the new and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def error_to_json(error: BaseException) -> dict[str, Any]:
    """Describe an error for ``status.json``: a user's problems one by one, any other error by its message."""
    if isinstance(error, UserError):
        return {"problems": [{"where": p.where, "message": p.message, "nearest": p.nearest} for p in error.problems]}
    return {"message": f"{type(error).__name__}: {error}"}


def ending_of(code: int) -> str:
    """Tell how a process ended: its exit code, or the signal that killed it, as a negative number."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}" + (", as the system does when memory runs out" if -code == signal.SIGKILL else "")


def user_error_from_json(record: Mapping[str, Any] | None) -> UserError | None:
    """Return the user's error that ``status.json`` describes, or None if it describes none."""
    problems = (record or {}).get("problems")
    return UserError([Problem(**problem) for problem in problems]) if problems else None


class StageDir:
    """The files of a stage's directory.

    Args:
        path: the directory; need not exist.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"StageDir({str(self.path)!r})"

    @property
    def config_path(self) -> Path:
        """``config.yaml``: what to do, written by the driver."""
        return self.path / "config.yaml"

    @property
    def status_path(self) -> Path:
        """``status.json``: running, failed or finished; by whom, since when."""
        return self.path / "status.json"

    @property
    def result_path(self) -> Path:
        """``result.json``: written last; where it exists the stage is finished."""
        return self.path / "result.json"

    @property
    def manifest_path(self) -> Path:
        """``manifest.json``: the checksums of what a finished stage made."""
        return self.path / "manifest.json"

    @property
    def metrics_path(self) -> Path:
        """``metrics.jsonl``: one JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        """``log.txt``: everything the workers print."""
        return self.path / "log.txt"

    @property
    def predictions_path(self) -> Path:
        """``predictions.jsonl``: one record per example of an evaluation."""
        return self.path / "predictions.jsonl"

    @property
    def contamination_path(self) -> Path:
        """``contamination.jsonl``: one record per judged example that also occurs in a pretraining corpus."""
        return self.path / "contamination.jsonl"

    @property
    def lock_path(self) -> Path:
        """The file whose lock the driver holds while the stage runs."""
        return self.path / "lock"

    @property
    def workers_lock_path(self) -> Path:
        """The file whose shared lock every worker holds while it lives, with a line ``pid start_time host`` for each."""
        return self.path / "lock.workers"

    @property
    def checkpoints_dir(self) -> Path:
        """What a training stage resumes from."""
        return self.path / "checkpoints"

    @property
    def encoder_dir(self) -> Path:
        """The Hugging Face folder a training stage gives."""
        return self.path / "encoder"

    @property
    def model_path(self) -> Path:
        """``model.safetensors``: the whole fine-tuned objective."""
        return self.path / "model.safetensors"

    @property
    def data_dir(self) -> Path:
        """Shards of a prepared corpus, or arrays of annotations or of a statistic."""
        return self.path / "data"

    @property
    def tokenizer_dir(self) -> Path:
        """The tokenizer a preparation trained."""
        return self.path / "tokenizer"

    @cached_property
    def _config(self) -> dict[str, Any]:
        return cast(dict[str, Any], yaml.load(self.config_path.read_text(encoding="utf-8"), Loader=_Loader))  # noqa: S506

    def config(self) -> dict[str, Any]:
        """Return the content of ``config.yaml``."""
        return self._config

    def status(self) -> dict[str, Any]:
        """Return the content of ``status.json``; empty if there is none."""
        return _read_json(self.status_path) or {}

    def result(self) -> dict[str, Any]:
        """Return the content of ``result.json``; the stage must be finished."""
        return cast(dict[str, Any], json.loads(self.result_path.read_text(encoding="utf-8")))

    @property
    def finished(self) -> bool:
        """Whether the stage's result is there."""
        return self.result_path.exists()

    def damage(self, *, thorough: bool) -> str | None:
        """Return what is wrong with the files of a finished stage, or None.

        Args:
            thorough: read them all; otherwise only those that were changed since they were written.
        """
        if not self.manifest_path.exists():
            return None  # finished by an mlmx that wrote none
        try:
            self.result()
            return damage(self.path, json.loads(self.manifest_path.read_text(encoding="utf-8")), thorough=thorough)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"its record cannot be read ({type(error).__name__}: {error})"

    def sha256(self) -> dict[str, str]:
        """Return the SHA-256 of each file that the finished stage made, as its manifest says; empty if it has none."""
        files = (_read_json(self.manifest_path) or {}).get("files", {})
        return {name: written["sha256"] for name, written in files.items()}

    def parents(self) -> dict[str, StageDir]:
        """Return role -> the directory of each parent."""
        found = {role: self.parent(role) for role in self.config()["parents"]}
        return {role: parent for role, parent in found.items() if parent is not None}

    def parent(self, role: str) -> StageDir | None:
        """Return the directory of the parent in a role, or None if the stage has no such parent.

        Raises:
            UserError: if the config names neither a directory beside this one nor an absolute path.
        """
        name = self.config()["parents"].get(role)
        if name is None:
            return None
        if (Path(name).name != name and not Path(name).is_absolute()) or name == "..":
            raise user_error(f"parents.{role}", f"{name!r} is no stage beside this one ({self.config_path}).")
        return StageDir(self.path.parent / name)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.yaml``, making the directory if need be."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(
            self.config_path, yaml.dump(_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        )
        self.__dict__.pop("_config", None)

    def write_status(
        self, state: State, *, error: Mapping[str, Any] | None = None, launch: str | None = None, num_restarts: int | None = None
    ) -> None:
        """Write ``status.json``; ``running`` starts the clock, the other states stop it.

        Of several workers that fail, most do because of the first one; so its error stands, unless one tells a mistake of the user.

        Args:
            state: what the stage is doing.
            error: for ``failed``: what :func:`error_to_json` gives.
            launch: the driver's name for this launch; None, in a worker: that of the last status.
            num_restarts: how often the workers of this launch were started again; None: as the last status says.
        """
        last = self.status()
        begins = state == "running" and not num_restarts
        if launch is None and state == last.get("state") == "failed" and last["error"] and not (error or {}).get("problems"):
            error = last["error"]
        status = {
            "state": state,
            "pid": os.getpid() if begins else last.get("pid"),
            "host": socket.gethostname() if begins else last.get("host"),
            "started": now() if begins else last.get("started"),
            "ended": None if state == "running" else now(),
            "error": dict(error) if error else None,
            "launch": launch if launch is not None else last.get("launch"),
            "num_restarts": num_restarts if num_restarts is not None else 0 if begins else last.get("num_restarts", 0),
        }
        write_atomically(self.status_path, json.dumps(status, indent=1, ensure_ascii=False) + "\n")

    def write_predictions(self, predictions: Iterable[Mapping[str, Any]]) -> None:
        """Write ``predictions.jsonl``, one record per line, before the result."""
        _write_records(self.predictions_path, predictions)

    def write_contamination(self, found: Iterable[Mapping[str, Any]]) -> None:
        """Write ``contamination.jsonl``, one record per line, before the result."""
        _write_records(self.contamination_path, found)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``manifest.json`` of what the stage made, and ``result.json``: the stage is finished with this."""
        manifest = manifest_of(self.path, PRODUCTS)
        write_atomically(self.manifest_path, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        write_atomically(self.result_path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


# The C parser reads a config in a tenth of the time; it is there wherever PyYAML is a wheel.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def encoder_folder(source: str | Path) -> str | Path:
    """Return the Hugging Face folder of a source: a stage keeps its own in ``encoder/``; anything else is returned as it is."""
    inside = StageDir(Path(source)).encoder_dir
    return inside if (inside / "config.json").is_file() else source


def _plain(value: Any) -> Any:
    """Copy a value into dicts and lists without shared parts, which YAML would write as anchors."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    write_atomically(path, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):  # a damaged status is as good as none
        return None
