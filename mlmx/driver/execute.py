"""Carrying out stages: each once, whoever asks for it, and its result reused from then on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlmx.driver import launch
from mlmx.driver.contents import source_hash
from mlmx.driver.directories import Placed, place
from mlmx.driver.lease import drain, reading, stage_lease
from mlmx.driver.say import say, show
from mlmx.driver.stages import place_of, stages_of
from mlmx.driver.sweep import command_began
from mlmx.errors import Problem, UserError
from mlmx.fingerprint import canonical_json
from mlmx.stage import PRODUCTS, StageDir


def run_stages(
    placed: Sequence[Placed],
    *,
    fresh: bool | float = False,
    worker: str = launch.WORKER,
    done: Callable[[Placed, bool], None] = lambda placed, reused: None,
) -> int:
    """Carry out stages in order; return how many had to be run.

    Args:
        placed: the stages, each after its parents; checked.
        fresh: build anew what was made before this command began, or before a time in seconds since 1970.
        worker: the module that carries out a stage.
        done: told each stage when its result is there, and whether it was there before.

    Raises:
        UserError: if the user can mend what went wrong.
        StageFailedError: if a stage failed otherwise.
    """
    before = command_began() if fresh is True else float(fresh)
    source = source_hash()
    num_run = 0
    for one in placed:
        reused = _carry_out(one, source, before, worker)
        num_run += not reused
        done(one, reused)
    return num_run


def checked_stages(config: Mapping[str, Any], *, fresh: bool | float = False) -> list[Placed]:
    """Return the stages of a run where they lie, with settings that were checked against the constructors.

    Args:
        config: the frozen config.
        fresh: see ``check``.

    Raises:
        UserError: with every problem found.
    """
    try:
        placed = place(stages_of(config), Path(config["outputs"]))
    except UserError as error:
        # The run fails anyway; what is wrong within the groups is told along with what is wrong between them.
        from mlmx.config import component_problems

        raise UserError([*error.problems, *component_problems(config)]) from error
    check(placed, config, fresh=fresh)
    return placed


def check(placed: Sequence[Placed], config: Mapping[str, Any], *, fresh: bool | float = False) -> None:
    """Check the settings of stages that must run against the constructors. Imports torch, unless there is nothing to check.

    Args:
        placed: the stages.
        config: the frozen config.
        fresh: also finished ones.

    Raises:
        UserError: with every problem found.
    """
    to_run = [one for one in placed if fresh or not one.directory.finished]
    if not to_run:
        return
    from mlmx.build import is_node, problems_of
    from mlmx.target import allow_package

    for package in config["plugins"]:
        allow_package(package)
    seen = set()
    problems: dict[str, Problem] = {}
    for one in to_run:
        for key, value in one.stage.spec.items():
            nodes = {f"{key}.{i}": node for i, node in enumerate(value)} if isinstance(value, list) else {key: value}
            for setting, node in nodes.items():
                where = place_of(one.stage, setting)
                identity = canonical_json([where, node])
                if is_node(node) and identity not in seen:
                    seen.add(identity)
                    problems |= {str(problem): problem for problem in problems_of(node, where, key)}
    if problems:
        raise UserError(list(problems.values()))


def _carry_out(one: Placed, source: str, before: float, worker: str) -> bool:
    """Run a stage unless its result is there; return whether it was, or was made by a driver that this one joined."""
    told = _Waiting(one.label)
    rendezvous = one.group.rendezvous
    while True:
        directory = one.directory
        if _is_usable(directory, before):
            _say_reused(one, directory, source)
            return True
        with stage_lease(directory, told.tell, rendezvous=rendezvous) as leads:
            if not leads:
                launch.join(directory, say=told.tell, show=show, worker=worker)
            # Somebody else may have finished it meanwhile.
            elif not _is_usable(directory, before):
                drain(directory, told.tell)
                if _clear(one, directory, before):
                    _run(one, directory, source, before, worker)
                    return False


def _clear(one: Placed, directory: StageDir, before: float) -> bool:
    """Set aside what the stage must not go on from; return whether the directory is still the stage's."""
    if before and _began(directory) < before and directory.config_path.exists():
        _set_aside(directory)
        return False
    if directory.finished:
        _set_damaged_aside(one.label, directory)
    _check_fingerprint(one, directory)
    return True


def _run(one: Placed, directory: StageDir, source: str, before: float, worker: str) -> None:
    """Run a stage on parents that are whole. The caller holds its lease."""
    while True:
        with reading(parent.directory for parent in one.parents.values()):
            damaged = [parent for parent in one.parents.values() if parent.directory.damage(thorough=True) is not None]
            if not damaged:
                _launch(one, directory, source, worker)
                return
        for parent in damaged:
            with stage_lease(parent.directory, _Waiting(parent.label).tell):
                drain(parent.directory, _Waiting(parent.label).tell)
                if parent.directory.finished:
                    _set_damaged_aside(parent.label, parent.directory)
            _carry_out(parent, source, before, worker)


def _launch(one: Placed, directory: StageDir, source: str, worker: str) -> None:
    # Checkpoints of a training, arrays of a preparation.
    begun = directory.checkpoints_dir.is_dir() or any(directory.path.glob("*.partial"))
    if begun and directory.config_path.exists() and directory.config()["source"] != source:
        say(f"{one.label}: goes on with what other code began (--fresh builds it anew)")
    directory.write_config(one.config(source))
    say(f"{one.label}: running in {directory.path}")
    started = time.monotonic()
    try:
        launch.launch(directory, say=_Waiting(one.label).tell, show=show, worker=worker)
    except Exception:
        say(f"{one.label}: failed after {time.monotonic() - started:.1f} s")
        raise
    say(f"{one.label}: finished in {time.monotonic() - started:.1f} s")


@dataclass
class _Waiting:
    label: str

    def tell(self, message: str) -> None:
        say(f"{self.label}: {message}")


def _is_usable(directory: StageDir, before: float) -> bool:
    # What is only pointed to by a later stage is read through before that stage begins.
    return directory.finished and (not before or _began(directory) >= before) and directory.damage(thorough=False) is None


def _began(directory: StageDir) -> float:
    started = directory.status().get("started")
    return datetime.fromisoformat(started).timestamp() if started else 0.0


def _say_reused(one: Placed, directory: StageDir, source: str) -> None:
    other = directory.config().get("source") != source
    say(f"{one.label}: reused" + (" (made under other code; --fresh builds it anew)" if other else ""))


def _set_aside(directory: StageDir) -> None:
    """Move a directory out of the way of a fresh one. Nothing is deleted."""
    target = _replaced(directory)
    directory.path.rename(target)
    say(f"{directory.path.name}: set aside as {target}")


def _set_damaged_aside(label: str, directory: StageDir) -> None:
    """Make a finished stage whose files are damaged an unfinished one, which goes on from its last checkpoint if it has any."""
    if (damage := directory.damage(thorough=True)) is None:
        return
    target = _replaced(directory)
    target.mkdir()
    # The result goes first: without it, the stage is not finished.
    for name in (directory.result_path.name, directory.manifest_path.name, *PRODUCTS):
        if (directory.path / name).exists():
            (directory.path / name).rename(target / name)
    say(f"{label}: damaged: {damage}; it is made again, and what there was is set aside as {target}")


def _replaced(directory: StageDir) -> Path:
    folder = directory.path.parent.parent / "replaced"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{directory.path.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"


def _check_fingerprint(one: Placed, directory: StageDir) -> None:
    if directory.config_path.exists() and directory.config()["fingerprint"] != one.fingerprint:
        message = f"{directory.path} holds another stage whose fingerprint begins alike; move it away."
        raise UserError(Problem("outputs", message))
