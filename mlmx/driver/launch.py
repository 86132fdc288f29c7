"""Starting the workers of a stage, and ending them: whatever happens, none of them is left running."""

from __future__ import annotations

import codecs
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

from mlmx.driver.lease import drain, gpu_lease, registered_workers
from mlmx.driver.sweep import stage_is_running
from mlmx.stage import DRIVER_VARIABLE, StageDir, user_error_from_json

WORKER = "mlmx.training.worker"
"""The module that carries out a stage; named, never imported."""

_TORCHRUN = "mlmx.training.torchrun"
_WATCH = "mlmx.training.deathwatch"
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 10.0
_CHECKPOINT_SECONDS = 300.0  # to end a step and write a large model to a slow disk
_LAST_GRACE_SECONDS = 20.0
_TAIL_LINES = 20

# Only these run as a group of processes; preparation and evaluation are one process each.
_TRAINING_KINDS = ("pretrain", "finetune")


class StageFailedError(Exception):
    """A stage whose workers failed, by no mistake of the user that mlmx knows of.

    Attributes:
        told_by_log: the message holds the end of the log, and with it the traceback that matters.
    """

    told_by_log = True


def launch(
    stage: StageDir,
    *,
    say: Callable[[str], None],
    show: Callable[[str], None],
    worker: str = WORKER,
    grace_seconds: float | None = None,
) -> None:
    """Run a stage's workers to their end. The caller holds the stage's lease.

    Args:
        stage: the stage; its ``config.yaml`` is written.
        say: told what the launcher itself has to say, a line each.
        show: given what the workers print, as it comes.
        worker: the module to run.
        grace_seconds: how long workers may take to end after SIGTERM; None: long enough for a checkpoint where the stage trains.

    Raises:
        UserError: if the workers met a mistake of the user.
        StageFailedError: if they failed otherwise.
        KeyboardInterrupt: after Ctrl-C, when all workers have ended.
        SystemExit: after SIGTERM or SIGHUP, when all workers have ended.
    """
    config = stage.config()
    parallel = config["execution"]["parallel"]
    trains = config["kind"] in _TRAINING_KINDS
    num_processes = parallel["num_processes"] if trains else 1
    # Tokenising needs no GPU, and must not wait until one is free.
    device = "cpu" if config["kind"] == "prepare" else parallel.get("device", "auto")
    grace = grace_seconds if grace_seconds is not None else _CHECKPOINT_SECONDS if trains else _GRACE_SECONDS
    name = uuid.uuid4().hex
    with gpu_lease(num_processes, device, say) as gpus:
        stage.write_status("running", launch=name)
        log = _Log(stage.log_path, show)
        environment = {**os.environ, **_environment(parallel, num_processes, name), **gpus}
        with stage.log_path.open("ab") as output, _Signals() as signals:
            process = subprocess.Popen(
                _command(stage, parallel, num_processes, worker),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                _wait(process, stage, signals, log, grace)
            finally:
                # Whatever ended the waiting, an error in this very function included.
                _end(process, stage, grace, signals)
                log.follow()
                _settle(stage, process.returncode, signals)
    signals.raise_received()
    _raise_failure(stage, process.returncode)


def attached(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a program that ends when this process does, however it ends."""
    environment = {**os.environ, DRIVER_VARIABLE: _driver("-"), "PYTHONUNBUFFERED": "1"}
    return [sys.executable, "-m", _WATCH, module, *arguments], environment


def run_attached(
    module: str, *arguments: str, text: str | None = None, output: IO[Any] | None = None, timeout_seconds: float
) -> str:
    """Run one of mlmx's programs beside a stage; it ends when this process does.

    Args:
        module: the program.
        *arguments: what it is given.
        text: its input.
        output: where its errors go; by default, where those of this process go.
        timeout_seconds: how long it may take.

    Returns:
        What it printed.

    Raises:
        StageFailedError: if it fails or takes too long.
    """
    command, environment = attached(module, *arguments)
    try:
        done = subprocess.run(
            command,
            env=environment,
            input=text or "",
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StageFailedError(f"{module} took longer than {timeout_seconds:.0f} s") from error
    if done.returncode:
        raise StageFailedError(f"{module} ended with exit code {done.returncode}")
    return done.stdout


def _driver(launch: str) -> str:
    return f"{os.getpid()} {psutil.Process().create_time()} {launch}"


def _command(stage: StageDir, parallel: Mapping[str, Any], num_processes: int, worker: str) -> list[str]:
    program = ["-m", _WATCH, "--stage", worker, str(stage.path)]
    if num_processes == 1:
        return [sys.executable, *program]
    return [
        *[sys.executable, "-m", _TORCHRUN, "--standalone", f"--nproc-per-node={num_processes}"],
        *[f"--max-restarts={parallel.get('max_restarts', 0)}", *program],
    ]


def _environment(parallel: Mapping[str, Any], num_processes: int, name: str) -> dict[str, str]:
    """Return what workers are told. Nothing is left to defaults that differ between a direct start and torchrun."""
    num_threads = parallel.get("num_threads") or max(1, _num_cores() // num_processes)
    return {
        DRIVER_VARIABLE: _driver(name),
        "OMP_NUM_THREADS": str(num_threads),
        "MKL_NUM_THREADS": str(num_threads),
        "RAYON_NUM_THREADS": str(num_threads),
        "TOKENIZERS_PARALLELISM": "false" if num_processes > 1 else "true",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _wait(process: subprocess.Popen[bytes], stage: StageDir, signals: _Signals, log: _Log, grace_seconds: float) -> None:
    killed_at: float | None = None
    while process.poll() is None:
        log.follow()
        if signals.num_received and killed_at is None:
            _signal_all(process, stage, signal.SIGTERM)
            killed_at = time.monotonic() + grace_seconds
        if killed_at is not None and (signals.num_received > 1 or time.monotonic() > killed_at):
            _signal_all(process, stage, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _end(process: subprocess.Popen[bytes], stage: StageDir, grace_seconds: float, signals: _Signals) -> None:
    """End what still runs of a stage: the agent, and workers that outlived it, which have sessions of their own."""
    if process.poll() is None:
        _signal_all(process, stage, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
    if process.poll() is None:
        _signal_all(process, stage, signal.SIGKILL)
        process.wait()
    if process.returncode != 0:
        # Workers that only begin now read this and end.
        stage.write_status("failed", error=stage.status().get("error"), launch="")
    if not drain(stage, _be_silent, 0.5):
        _signal_all(process, stage, signal.SIGTERM)
        patience = 0.0 if signals.num_received > 1 else grace_seconds
        if not drain(stage, _be_silent, patience):
            _signal_all(process, stage, signal.SIGKILL)
            drain(stage, _be_silent, _LAST_GRACE_SECONDS)


def _be_silent(message: str) -> None:
    pass


def _signal_all(process: subprocess.Popen[bytes], stage: StageDir, number: signal.Signals) -> None:
    """Signal the agent's group and the workers' groups, each of which was started as the leader of its own."""
    if process.poll() is None:
        _signal_group(process.pid, number)
    for pid, start_time in registered_workers(stage):
        with suppress(psutil.NoSuchProcess):
            if pid != process.pid and abs(psutil.Process(pid).create_time() - start_time) < 1.0:
                _signal_group(pid, number)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def _settle(stage: StageDir, code: int, signals: _Signals) -> None:
    """Write how it ended."""
    if code == 0 and stage.finished and not signals.num_received:
        stage.write_status("finished", launch="")
        return
    error = stage.status().get("error")
    if signals.num_received:
        error = {"message": "interrupted"}
    elif not error:
        error = {
            "message": f"the worker ended with exit code {code}" + ("" if stage.finished or code else " and left no result.json")
        }
    stage.write_status("failed", error=error, launch="")


def _raise_failure(stage: StageDir, code: int) -> None:
    status = stage.status()
    if status["state"] == "finished":
        return
    # torchrun ends with 1 whatever its workers ended with; their own words stand in the status.
    error = user_error_from_json(status["error"])
    if error is not None:
        raise error
    config = stage.config()
    message = (status["error"] or {}).get("message", f"exit code {code}")
    tail = "\n".join(f"  | {line}" for line in tail_of(stage.log_path, _TAIL_LINES))
    raise StageFailedError(f"{config['kind']} {config['name']} failed: {message}\n{tail}\n  The whole log: {stage.log_path}")


def tail_of(path: Path, num_lines: int) -> list[str]:
    """Return the last lines of a log."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200 * num_lines))
        return file.read().decode("utf-8", "replace").replace("\r", "\n").rstrip().split("\n")[-num_lines:]


class _Log:
    """Shows what workers write into a log. They write into the file itself, so that nothing is lost when the driver is killed."""

    def __init__(self, path: Path, show: Callable[[str], None]) -> None:
        self._path = path
        self._show = show
        self._position = path.stat().st_size if path.exists() else 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def follow(self) -> None:
        """Show what is new."""
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        self._position += len(data)
        if text := self._decoder.decode(data):
            self._show(text)


class _Signals:
    """Notes the signals that ask this process to end, so that the workers can be ended first."""

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: list[int] = []
        self._previous: dict[int, Any] = {}

    @property
    def num_received(self) -> int:
        return len(self.received)

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in self._NUMBERS:
                # nohup and shells ignore some of them on purpose.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self.receive)
        stage_is_running.set()
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        stage_is_running.clear()

    def raise_received(self) -> None:
        """Raise what the first signal would have raised."""
        if self.received:
            if self.received[0] == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + self.received[0])
