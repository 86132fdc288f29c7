"""What runs left behind: their summaries, and which settings make two of them different configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlmx.build import is_description, is_node, tasks_read_by
from mlmx.errors import user_error

# Parts of a config that say where and how a run was made, not what it computes.
_NO_CONFIGURATION = ("seed", "name", "outputs", "parallel", "tracker", "sweep_metric", "plugins", "places", "decontamination")
# What of a node's keys ``_x_`` tells components apart.
_IDENTITY = ("_target_", "_name_", "_version_")
# Settings of tasks that say which scores there are, and change none of them.
_WHICH_SCORES = ("splits", "submission", "controls")


@dataclass(frozen=True, slots=True)
class ScoreKey:
    """Which score: task, split and metric."""

    task: str
    split: str
    metric: str

    def __str__(self) -> str:
        return f"{self.task}/{self.split}/{self.metric}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScore:
    """One score of one run.

    Attributes:
        key: which score.
        value: the score.
        num_examples: how many examples it is computed over.
        higher_is_better: its direction.
        stage: name of the evaluation's stage directory.
        trivial: what the most frequent answer or chance gets, or None.
        main: whether it is the main one of its task, as the task's YAML says.
        contaminated: how many of how many examples also occur in a pretraining corpus; None where that was not looked for.
    """

    key: ScoreKey
    value: float
    num_examples: int
    higher_is_better: bool
    stage: str
    trivial: float | None = None
    main: bool = False
    contaminated: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, as its ``summary.json`` tells it.

    Attributes:
        folder: name of the run's folder.
        started: when, as ISO text; sorts by time.
        status: ``finished``, ``failed`` ...
        error: what went wrong, in one line, or "".
        seed: its seed.
        settings: its configuration without tasks: what can make a difference to results, but for the seed.
        tasks: task -> its settings.
        scores: its scores, also those that a failed run got to.
        reads: task -> the tasks of the run whose results it goes on from.
        made_with: the parts of the summary that say with what: ``git``, ``versions``, ``hardware``.
    """

    folder: str
    started: str
    status: str
    error: str
    seed: int
    settings: Mapping[str, Any]
    tasks: Mapping[str, Any]
    scores: Sequence[RunScore]
    reads: Mapping[str, Sequence[str]] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)


def read_runs(outputs: Path) -> list[Run]:
    """Read all runs below ``outputs``, oldest first.

    Raises:
        UserError: if there is none, or a summary cannot be read.
    """
    paths = sorted((outputs / "runs").glob("*/summary.json"))
    if not paths:
        raise user_error("outputs", f"there is no run in {outputs / 'runs'}.")
    return sorted((_read(path) for path in paths), key=lambda run: (run.started, run.folder))


def canonical(settings: object) -> str:
    """Return settings as text that is equal for equal settings."""
    return json.dumps(settings, sort_keys=True, ensure_ascii=False)


def _read(path: Path) -> Run:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config = record["config"]
        error = record.get("error")
        return Run(
            folder=path.parent.name,
            started=record.get("started") or path.parent.name,
            status=record["status"],
            error=_one_line(error),
            seed=record["seed"],
            settings=_settings(config),
            tasks={name: _effective(node) for name, node in (config.get("task") or {}).items()},
            reads={name: list(tasks_read_by(node).values()) for name, node in (config.get("task") or {}).items()},
            scores=[_score(score) for score in record["scores"]],
            made_with={part: record.get(part) for part in ("git", "versions", "hardware")},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise user_error(str(path), f"is no summary of a run: {problem!r}.") from problem


def _score(record: Mapping[str, Any]) -> RunScore:
    return RunScore(
        key=ScoreKey(record["task"], record["split"], record["metric"]),
        value=float(record["value"]),
        num_examples=int(record["num_examples"]),
        higher_is_better=bool(record["higher_is_better"]),
        stage=str(record.get("stage", "")),
        trivial=record.get("trivial"),
        main=bool(record.get("main")),
        contaminated=tuple(record["contaminated"]) if record.get("contaminated") else None,
    )


def _one_line(error: object) -> str:
    if isinstance(error, Mapping):
        if problems := error.get("problems"):
            # What is wrong stands in the first line of a problem, and in the last one of a traceback.
            return "; ".join(f"{problem['where']}: {problem['message']}".partition("\n")[0] for problem in problems)
        error = error.get("message")
    lines = str(error).strip().splitlines() if error else []
    return lines[-1] if lines else ""


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in config.items() if key not in (*_NO_CONFIGURATION, "task")}
    if config.get("chain"):
        # Every stage names its own corpus; the root's is only where they took it from.
        settings.pop("corpus", None)
    stages = {}
    for name, groups in (settings.get("stages") or {}).items():
        needs_annotation = (groups.get("objective") or {}).get("_needs_annotation_")
        stages[name] = {group: node for group, node in groups.items() if group != "annotator" or needs_annotation}
    return {key: _effective(value) for key, value in {**settings, "stages": stages}.items()}


def _effective(value: Any) -> Any:
    # The value without settings that have no effect on a score.
    if isinstance(value, Mapping):
        without = {*(value.get("_no_effect_") or ()), *_WHICH_SCORES} if is_node(value) else ()
        return {key: _effective(inner) for key, inner in value.items() if key not in without and not _is_remark(key)}
    if isinstance(value, list):
        return [_effective(inner) for inner in value]
    return value


def _is_remark(key: str) -> bool:
    return is_description(key) and key not in _IDENTITY
