"""Jobs of a parallel sweep that end with its main process.

A launcher such as joblib runs jobs in processes of its own. When the main process is killed outright they would finish their job,
take the next from the queue, and then linger.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import psutil

_POLL_SECONDS = 0.3
_watching = threading.Event()
stage_is_running = threading.Event()
"""Set while this process has workers to end before it may end itself."""


def is_job() -> bool:
    """Tell whether this process is a job's, started by the main process of a parallel sweep."""
    return multiprocessing.current_process().name != "MainProcess"


def command_began() -> float:
    """Return when the user's command began, in seconds since 1970; a job began with its main process."""
    return psutil.Process(os.getppid() if is_job() else None).create_time()


def end_with_main_process() -> None:
    """Watch the main process, if this is a job's; a shell that ends before its command, in contrast, is no reason to end."""
    if is_job() and not _watching.is_set():
        _watching.set()
        threading.Thread(target=_watch, args=(os.getppid(),), name="sweepwatch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    # While workers run this is noted and they are ended first; at any other time it ends the process.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_POLL_SECONDS)
    while stage_is_running.is_set():
        time.sleep(_POLL_SECONDS)
    os._exit(128 + signal.SIGTERM)
