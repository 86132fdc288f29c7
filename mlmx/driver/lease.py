"""Leases: which process runs a stage, and on which GPUs.

A lease is a lock of the operating system on a file, so it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from mlmx.errors import UserError, user_error
from mlmx.locks import try_lock
from mlmx.stage import StageDir, now

_POLL_SECONDS = 0.2
_NVIDIA_SMI_SECONDS = 30.0

Say = Callable[[str], None]


@contextmanager
def stage_lease(stage: StageDir, say: Say, *, rendezvous: str | None = None) -> Iterator[bool]:
    """Be the only driver at work on a stage. Before anything is changed in it, its users must be drained too.

    Gives True; or False at once, without the lease, where the driver that has it waits for this one at the same rendezvous.

    Args:
        stage: whose directory; made if need be.
        say: told for whom it waits.
        rendezvous: where the nodes of this stage meet; None if it runs on one machine.
    """
    file = _lock_in_place(stage.lock_path, said_once(say), rendezvous)
    if file is None:
        yield False
        return
    with file:
        file.truncate(0)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now(), "rendezvous": rendezvous}
        file.write(json.dumps(holder))
        file.flush()
        yield True


def is_led(stage: StageDir) -> bool:
    """Tell whether a driver has the lease of a stage."""
    with stage.lock_path.open("a+", encoding="utf-8") as file:
        return not try_lock(file)


def said_once(say: Say) -> Say:
    """Return a ``say`` that does not repeat itself."""
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return say_once


def _lock_in_place(path: Path, tell: Say, rendezvous: str | None) -> IO[str] | None:
    """Lock a file that others may move away while they hold it, and return it open; None if who holds it is to be joined."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        if not try_lock(file):
            file.close()
            holder = _holder(path)
            if rendezvous is not None and holder.get("rendezvous") == rendezvous:
                return None
            who = "pid {pid} on {host}, which holds it since {since}" if holder else "another process that just began"
            tell(f"waits for {who.format(**holder)}")
            time.sleep(_POLL_SECONDS)
        elif path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        else:
            file.close()


def _holder(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def drain(stage: StageDir, say: Say, timeout_seconds: float | None = None) -> bool:
    """Wait until no worker works on a stage and no later stage reads it; return whether that came about in time."""
    tell = said_once(say)
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    with stage.workers_lock_path.open("a+", encoding="utf-8") as file:
        while not try_lock(file):
            if deadline is not None and time.monotonic() > deadline:
                return False
            pids = ", ".join(str(pid) for pid, _ in registered_workers(stage)) or "unknown"
            tell(f"waits for processes that still use {stage.path.name} (workers: pid {pids})")
            time.sleep(_POLL_SECONDS)
        file.truncate(0)
    return True


def registered_workers(stage: StageDir) -> list[tuple[int, float]]:
    """Return (pid, start time) of the workers of this machine that entered themselves since the stage was last free."""
    try:
        lines = stage.workers_lock_path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    # The last line may be half written.
    entries = [line.split() for line in lines[:-1]]
    return [(int(entry[0]), float(entry[1])) for entry in entries if len(entry) == 3 and entry[2] == socket.gethostname()]


@contextmanager
def reading(stages: Iterable[StageDir]) -> Iterator[None]:
    """Hold finished stages as one of their readers, so that nobody sets them aside meanwhile."""
    with ExitStack() as held:
        for stage in stages:
            file = held.enter_context(stage.workers_lock_path.open("a", encoding="utf-8"))
            while not try_lock(file, shared=True):
                time.sleep(_POLL_SECONDS)
        yield


@contextmanager
def gpu_lease(
    num_gpus: int,
    device: str,
    say: Say,
    *,
    gpus: Sequence[str] | None = None,
    folder: Path | None = None,
) -> Iterator[Mapping[str, str]]:
    """Hold as many GPUs as a stage has processes; give the environment variables that show them to its workers.

    On a machine without GPUs, or for ``device=cpu``, nothing is held.

    Args:
        num_gpus: how many processes the stage has.
        device: ``auto``, ``cpu`` or ``cuda``.
        say: told once if it has to wait.
        gpus: what there is to share; by default what ``CUDA_VISIBLE_DEVICES`` allows of what nvidia-smi lists.
        folder: where the lock files are; by default one for each user of this machine.

    Raises:
        UserError: if GPUs are demanded that the machine does not have.
    """
    if device == "cpu":
        yield {"CUDA_VISIBLE_DEVICES": ""}
        return
    installed = _installed() if gpus is None else []
    visible = visible_gpus(num_installed=len(installed)) if gpus is None else list(gpus)
    check_device(device, num_gpus, visible)
    if not visible:
        yield {}
        return
    folder = folder or Path(tempfile.gettempdir()) / f"mlmx-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as held:
        told = False
        while (taken := _take(visible, installed, num_gpus, folder, held)) is None:
            if not told:
                say(f"waits for {num_gpus} free of {len(visible)} GPUs")
                told = True
            time.sleep(_POLL_SECONDS)
        yield {"CUDA_VISIBLE_DEVICES": ",".join(taken), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _take(gpus: Sequence[str], identities: Sequence[str], num_gpus: int, folder: Path, held: ExitStack) -> list[str] | None:
    """Lock that many GPUs or none: two stages that each held a part would wait for each other forever."""
    with ExitStack() as tried:
        taken: list[str] = []
        for gpu in gpus:
            # On a cluster each job counts the GPUs it was given from 0, so that a number says nothing to other jobs.
            identity = identities[int(gpu)] if gpu.isdigit() and int(gpu) < len(identities) else gpu
            file = tried.enter_context((folder / f"{identity.replace('/', '_')}.lock").open("a+"))
            if try_lock(file):
                taken.append(gpu)
            if len(taken) == num_gpus:
                held.push(tried.pop_all())
                return taken
    return None


def check_device(device: str, num_processes: int, gpus: Sequence[str]) -> None:
    """Check that the machine has the GPUs a stage needs.

    Raises:
        UserError: if it does not.
    """
    if device == "cuda" and not gpus:
        raise user_error("parallel.device", "'cuda' was asked for, and this machine shows no GPU; allowed here: auto, cpu.")
    if gpus and num_processes > len(gpus):
        raise _too_many(num_processes, len(gpus))


def _too_many(num_processes: int, num_gpus: int) -> UserError:
    message = (
        f"{num_processes} processes need a GPU each, and there are {num_gpus}; parallel.device=cpu runs them on the processor."
    )
    return user_error("parallel.num_processes", message)


def visible_gpus(environment: Mapping[str, str] | None = None, num_installed: int | None = None) -> list[str]:
    """Return the names of the GPUs this process may use, without importing torch.

    Args:
        environment: variables, by default those of this process.
        num_installed: how many GPUs the machine has; by default nvidia-smi is asked.
    """
    allowed = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if allowed is not None and not allowed.strip():
        return []
    installed = [str(i) for i in range(len(_installed()) if num_installed is None else num_installed)]
    if allowed is None or not installed:
        return installed
    names: list[str] = []
    for name in allowed.split(","):
        # CUDA ignores everything from the first name on that it does not know.
        if not name.strip().startswith(("GPU-", "MIG-")) and name.strip() not in installed:
            break
        names.append(name.strip())
    return names


def _installed() -> list[str]:
    """Return the UUIDs of the GPUs that this process can see, in the order of their numbers."""
    if shutil.which("nvidia-smi") is None:
        return []
    command: list[Any] = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.split() if answer.returncode == 0 else []
