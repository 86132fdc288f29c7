"""Starting the workers of a stage, and ending them: whatever happens, none of them is left running."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from mlmx.driver.command import Group, StageFailedError
from mlmx.driver.lease import drain, gpu_lease, is_led, registered_workers
from mlmx.driver.log import LogFollower, tail_of
from mlmx.driver.signals import Signals
from mlmx.driver.storage import storage_error
from mlmx.stage import TRAINING_KINDS, StageDir, ending_of, user_error_from_json

WORKER = "mlmx.training.worker"
"""The module that carries out a stage; named, never imported."""

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 10.0
_CHECKPOINT_SECONDS = 300.0  # to end a step and write a large model to a slow disk
_LAST_GRACE_SECONDS = 20.0
_TAIL_LINES = 20
# What gloo, NCCL and torchrun say when a rank did not answer; and when nodes did not come.
_HUNG = re.compile(r"Timed out waiting \d+ ?ms|collective operation timeout|wait timeout after \d+ ?ms")
_ALONE = re.compile(r"RendezvousTimeoutError|RendezvousConnectionError")

Say = Callable[[str], None]


def launch(stage: StageDir, *, say: Say, show: Say, worker: str = WORKER, grace_seconds: float | None = None) -> None:
    """Run a stage's workers to their end. The caller holds the stage's lease.

    Args:
        stage: the stage; its ``config.yaml`` is written.
        say: told what the launcher itself has to say, a line each.
        show: given what the workers print, as it comes.
        worker: the module to run.
        grace_seconds: how long workers may take to end after SIGTERM; None: long enough for a checkpoint where the stage trains.

    Raises:
        UserError: if the workers met a mistake of the user, or a full disk.
        StageFailedError: if they failed otherwise.
        KeyboardInterrupt: after Ctrl-C, when all workers have ended.
        SystemExit: after SIGTERM or SIGHUP, when all workers have ended.
    """
    group = _group(stage)
    name = uuid.uuid4().hex
    with gpu_lease(group.num_processes, group.device, say) as gpus:
        stage.write_status("running", launch=name)
        if group.rendezvous is not None:
            say(f"waits for {group.num_nodes} nodes at {group.rendezvous}")
        with _agent(stage, group, name, worker, gpus, stage.log_path, show, grace_seconds) as agent:
            try:
                agent.wait()
            finally:
                # Whatever ended the waiting, an error in this very function included.
                agent.end()
                agent.end_workers(group)
                error = _settle(stage, agent)
    agent.signals.raise_received()
    if error is not None:
        raise _failure(stage, group, error, agent)


def join(stage: StageDir, *, say: Say, show: Say, worker: str = WORKER, grace_seconds: float | None = None) -> None:
    """Run this machine's part of a launch that the driver of another machine leads; return when there is none (any more).

    Args:
        stage: the stage; somebody else holds its lease.
        say: told what the launcher itself has to say.
        show: given what the workers of this machine print; their log is ``log.<host>.txt``.
        worker: the module to run.
        grace_seconds: how long workers may take to end after SIGTERM.

    Raises:
        UserError: as :func:`launch`.
        StageFailedError: as :func:`launch`.
        KeyboardInterrupt: as :func:`launch`.
        SystemExit: as :func:`launch`.
    """
    status = stage.status()
    name = status.get("launch")
    if status.get("state") != "running" or not name or not stage.config_path.exists():
        time.sleep(_POLL_SECONDS)
        return

    def is_over() -> bool:
        return bool(stage.status().get("launch") != name)

    group = _group(stage)
    say(f"joins {status['host']} at {group.rendezvous}")
    with gpu_lease(group.num_processes, group.device, say) as gpus:
        log_path = stage.path / f"log.{socket.gethostname()}.txt"
        with _agent(stage, group, name, worker, gpus, log_path, show, grace_seconds) as agent:
            try:
                agent.wait(is_over)
            finally:
                agent.end()
    agent.signals.raise_received()
    while not is_over() and is_led(stage):
        time.sleep(_POLL_SECONDS)
    status = stage.status()
    if status.get("state") == "failed":
        raise _failure(stage, group, status["error"], agent)
    if not is_over() and not stage.finished:
        raise _failure(stage, group, {"message": f"the driver on {status['host']}, which led it, is gone"}, agent)


def _group(stage: StageDir) -> Group:
    config = stage.config()
    return Group.of(config["kind"], config["execution"]["parallel"])


@contextmanager
def _agent(
    stage: StageDir,
    group: Group,
    name: str,
    worker: str,
    gpus: Mapping[str, str],
    log_path: Path,
    show: Say,
    grace_seconds: float | None,
) -> Iterator[_Agent]:
    if grace_seconds is None:
        grace_seconds = _CHECKPOINT_SECONDS if stage.config()["kind"] in TRAINING_KINDS else _GRACE_SECONDS
    log = LogFollower(log_path, show)
    with log_path.open("ab") as output, Signals() as signals:
        process = subprocess.Popen(
            group.command(stage, worker, name),
            env={**os.environ, **group.environment(name, grace_seconds), **gpus},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        yield _Agent(stage, process, signals, log, grace_seconds)


class _Agent:
    """What this machine runs of a stage: a worker, or torchrun with several.

    Args:
        stage: the stage.
        process: the worker or torchrun.
        signals: those that ask this driver to end.
        log: where workers print.
        grace_seconds: how long workers may take to end after SIGTERM.
    """

    def __init__(
        self, stage: StageDir, process: subprocess.Popen[bytes], signals: Signals, log: LogFollower, grace_seconds: float
    ) -> None:
        self.process = process
        self.signals = signals
        self.log = log
        self._stage = stage
        self._grace_seconds = grace_seconds

    def wait(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Wait until the process has ended, by itself, on a signal, or because its launch is over."""
        kill_at: float | None = None
        while self.process.poll() is None:
            self.log.follow()
            if kill_at is None and (self.signals.num_received or is_over()):
                self._signal(signal.SIGTERM)
                kill_at = time.monotonic() + self._grace_seconds
            if kill_at is not None and (self.signals.num_received > 1 or time.monotonic() > kill_at):
                self._signal(signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    def end(self) -> None:
        """End the process if it still runs."""
        if self.process.poll() is None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(self._grace_seconds)
        if self.process.poll() is None:
            self._signal(signal.SIGKILL)
            self.process.wait()
        self.log.follow()

    def end_workers(self, group: Group) -> None:
        """End workers that outlived torchrun; each is the leader of a session of its own."""
        if self.process.returncode != 0:
            # Workers that only begin now read this and end.
            with suppress(OSError):
                self._stage.write_status("failed", error=self._stage.status().get("error"), launch="")
        # Those of other nodes end by themselves.
        if not drain(self._stage, _be_silent, 0.5 if group.num_nodes == 1 else _LAST_GRACE_SECONDS):
            self._signal_registered(signal.SIGTERM)
            patience = 0.0 if self.signals.num_received > 1 else self._grace_seconds
            if not drain(self._stage, _be_silent, patience):
                self._signal_registered(signal.SIGKILL)
                drain(self._stage, _be_silent, _LAST_GRACE_SECONDS)
        self.log.follow()

    def _signal(self, number: signal.Signals) -> None:
        """Signal the process and its workers."""
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            for worker in psutil.Process(self.process.pid).children():
                if os.getpgid(worker.pid) == worker.pid:  # torchrun's workers; not those that load data
                    _signal_group(worker.pid, number)
        if self.process.poll() is None:
            _signal_group(self.process.pid, number)

    def _signal_registered(self, number: signal.Signals) -> None:
        for pid, start_time in registered_workers(self._stage):
            with suppress(psutil.NoSuchProcess):
                if abs(psutil.Process(pid).create_time() - start_time) < 1.0:
                    _signal_group(pid, number)


def _be_silent(message: str) -> None:
    pass


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def _settle(stage: StageDir, agent: _Agent) -> dict[str, Any] | None:
    """Write how it ended, and return the error, if it was one; a full disk takes no words."""
    code = agent.process.returncode
    if code == 0 and stage.finished and not agent.signals.num_received:
        with suppress(OSError):
            stage.write_status("finished", launch="")
        return None
    error: dict[str, Any] | None = stage.status().get("error")
    if agent.signals.num_received:
        error = {"message": "interrupted"}
    elif not error:
        error = {"message": f"the worker {ending_of(code)}" + ("" if stage.finished or code else " and left no result.json")}
    with suppress(OSError):
        stage.write_status("failed", error=error, launch="")
    return error


def _failure(stage: StageDir, group: Group, error: Mapping[str, Any], agent: _Agent) -> Exception:
    # torchrun ends with 1 whatever its workers ended with; their own words stand in the status.
    if (told := user_error_from_json(error)) is not None:
        return told
    tail = tail_of(agent.log.path, _TAIL_LINES, agent.log.begin)
    message = str(error.get("message"))
    said = "\n".join([message, *tail])
    if (full := storage_error(said, stage.path)) is not None:
        return full
    limit = f"parallel.timeout_seconds={group.timeout_seconds}"
    if group.num_nodes > 1 and _ALONE.search(said):
        message = f"there were not {group.num_nodes} nodes at parallel.rendezvous={group.rendezvous} within {limit}"
    elif group.size > 1 and _HUNG.search(said):
        message = f"a worker did not answer the others within {limit}: it hangs, or needs longer ({message})"
    config = stage.config()
    lines = "".join(f"\n  | {line}" for line in tail)
    return StageFailedError(f"{config['kind']} {config['name']} failed: {message}{lines}\n  The whole log: {agent.log.path}")
