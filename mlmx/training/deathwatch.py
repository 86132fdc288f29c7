"""Workers that never outlive who started them.

A worker calls :func:`watch` first of all, before it imports torch. From then on it holds a shared lock on its stage, so that no
successor starts beside it, and ends itself as soon as the driver or the torchrun agent is gone, however they ended, even in the
middle of a collective operation. ``python -m mlmx.training.deathwatch [--stage] <module> <folder>...`` runs a module like that.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import socket
import sys
import threading
import time
from typing import IO, Any

import psutil

from mlmx.locks import try_lock
from mlmx.stage import DRIVER_VARIABLE, EXIT_USER_ERROR, StageDir

_POLL_SECONDS = 0.3
_GRACE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1

_held: list[IO[Any]] = []


def watch(stage: StageDir) -> None:
    """Hold the stage until this process dies, and die with the driver or the agent.

    Args:
        stage: the stage this process works on.
    """
    if _held:
        return
    parent = os.getppid()
    file = stage.workers_lock_path.open("a", encoding="utf-8")
    while not try_lock(file, shared=True):
        time.sleep(0.05)  # A driver looks for a moment whether workers are left.
    _held.append(file)
    file.write(f"{os.getpid()} {psutil.Process().create_time()} {socket.gethostname()}\n")
    file.flush()
    watch_driver(parent, stage)
    if num_restarts := int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        _begin_again(stage, num_restarts)


def _begin_again(stage: StageDir, num_restarts: int) -> None:
    """Say that torchrun starts the workers once more, or end this one if that mends nothing."""
    error = stage.status().get("error") or {}
    if error.get("problems"):
        sys.exit(EXIT_USER_ERROR)  # which stands in the status
    if int(os.environ["RANK"]) == 0:
        most = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "?")
        reason = error.get("message", "a worker failed")
        print(f"restart {num_restarts} of at most {most} (parallel.max_restarts), after: {reason}", flush=True)  # noqa: T201
        stage.write_status("running", num_restarts=num_restarts)


def watch_driver(parent: int, stage: StageDir | None = None) -> None:
    """Die with the driver; without one, when run by hand, do nothing.

    Args:
        parent: the process that started this one.
        stage: what a worker works on; its status says when the driver gives up.
    """
    told = os.environ.get(DRIVER_VARIABLE)
    if told is None:
        return
    pid, start_time, launch = told.split()
    driver = _process(int(pid), float(start_time))
    _die_with_parent()
    # The order matters: first the lock, then the look. A driver that died before this look is seen by it; one that dies later is
    # seen by the thread; and its successor waits for the lock in both cases.
    if driver is None or os.getppid() != parent or _is_over(stage, launch):
        _exit("the driver was gone before this worker began")
    threading.Thread(target=_watch, args=(stage, driver, parent, launch), name="deathwatch", daemon=True).start()


def _watch(stage: StageDir | None, driver: psutil.Process, parent: int, launch: str) -> None:
    while True:
        if not _is_alive(driver):
            _exit("the driver is gone")
        if os.getppid() != parent:
            _exit("the torchrun agent is gone")
        if _is_over(stage, launch):
            _exit("the driver gave up this launch")
        time.sleep(_POLL_SECONDS)


def _is_over(stage: StageDir | None, launch: str) -> bool:
    if stage is None:
        return False
    status = stage.status()
    # Where another machine's driver was first to see that all is done, the others end in peace.
    return status.get("launch") != launch and status.get("state") != "finished"


def _process(pid: int, start_time: float) -> psutil.Process | None:
    """Return the process, or None if it is gone; a number used again is told by its start."""
    try:
        process = psutil.Process(pid)
        # The start is reckoned from the boot time, which clock corrections move a little.
        same = abs(process.create_time() - start_time) < 5.0
    except psutil.NoSuchProcess:
        return None
    return process if same and _is_alive(process) else None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _die_with_parent() -> None:
    """Let the kernel send SIGTERM when the parent dies; without waiting for the watching thread, where there is such a thing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _exit(reason: str) -> None:
    """End this process and its data-loading children: politely, then at once."""
    os.write(2, f"worker {os.getpid()} ends: {reason}\n".encode())
    if threading.current_thread() is not threading.main_thread():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)  # A handler may be saving a checkpoint.
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(128 + signal.SIGTERM)


def main() -> None:
    """Run a module as a program, under watch; ``--stage`` says that its first argument is a stage's directory."""
    parent = os.getppid()
    arguments = sys.argv[1:]
    if arguments[0] == "--stage":
        del arguments[0]
        watch(StageDir(arguments[1]))
    else:
        watch_driver(parent)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    # Run as a program this file is a second copy of itself; what it holds must be held by the one that others import.
    from mlmx.training import deathwatch

    deathwatch.main()
