"""The programs that carry out a stage: which processes there are, their command lines and their environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import psutil

from mlmx.stage import DRIVER_VARIABLE, PARALLEL_KINDS, StageDir

_TORCHRUN = "mlmx.training.torchrun"
_WATCH = "mlmx.training.deathwatch"


class StageFailedError(Exception):
    """A stage whose workers failed, by no mistake of the user that mlmx knows of.

    Attributes:
        told_by_log: the message holds the end of the log, and with it the traceback that matters.
    """

    told_by_log = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The processes of a stage, as ``parallel`` describes them; what prepares a corpus has a single one.

    Attributes:
        num_processes: on each node.
        num_nodes: machines; on each of them a driver starts its part of the group.
        rendezvous: ``host:port`` where they find each other; None on a single machine.
        max_restarts: how often the group is started again after a failure, from its last checkpoint if it trains.
        timeout_seconds: of a collective operation, and of the nodes' finding each other.
        num_threads: CPU threads of each process; None: the cores, divided among the processes.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    num_processes: int
    num_nodes: int
    rendezvous: str | None
    max_restarts: int
    timeout_seconds: float
    num_threads: int | None
    device: str

    @classmethod
    def of(cls, kind: str, parallel: Mapping[str, Any]) -> Group:
        """Return the group of a stage of some kind."""
        several = kind in PARALLEL_KINDS
        nodes = parallel["num_nodes"] if several else 1
        return cls(
            num_processes=parallel["num_processes"] if several else 1,
            num_nodes=nodes,
            rendezvous=parallel["rendezvous"] if nodes > 1 else None,
            max_restarts=parallel["max_restarts"] if several else 0,
            timeout_seconds=parallel["timeout_seconds"],
            num_threads=parallel["num_threads"],
            # Tokenising and counting need no GPU, and must not wait until one is free.
            device="cpu" if kind in ("prepare", "collect") else parallel["device"],
        )

    @property
    def size(self) -> int:
        """Number of processes on all nodes."""
        return self.num_processes * self.num_nodes

    def command(self, stage: StageDir, worker: str, launch: str) -> list[str]:
        """Return the command that starts this machine's part of the group.

        Args:
            stage: what to carry out.
            worker: the module that does.
            launch: the name of this launch, by which the nodes know each other.
        """
        program = ["-m", _WATCH, "--stage", worker, str(stage.path)]
        if self.size == 1 and not self.max_restarts:
            return [sys.executable, *program]
        meeting = ["--standalone"]
        if self.rendezvous is not None:
            meeting = [f"--nnodes={self.num_nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={self.rendezvous}"]
            meeting += [f"--rdzv-id={launch}", f"--rdzv-conf=join_timeout={self.timeout_seconds:.0f}"]
        processes = [f"--nproc-per-node={self.num_processes}", f"--max-restarts={self.max_restarts}"]
        return [sys.executable, "-m", _TORCHRUN, *meeting, *processes, *program]

    def environment(self, launch: str, grace_seconds: float) -> dict[str, str]:
        """Return what workers are told. Nothing is left to defaults that differ between a direct start and torchrun."""
        num_threads = self.num_threads or max(1, _num_cores() // self.num_processes)
        return {
            DRIVER_VARIABLE: _driver(launch),
            "OMP_NUM_THREADS": str(num_threads),
            "MKL_NUM_THREADS": str(num_threads),
            "RAYON_NUM_THREADS": str(num_threads),
            "TOKENIZERS_PARALLELISM": "false" if self.num_processes > 1 else "true",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONUNBUFFERED": "1",
            # torchrun would kill workers that write their last checkpoint after 30 seconds.
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(grace_seconds)),
            # A group that is started again would find the addresses of the one before in a store that both share, and hang.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _driver(launch: str) -> str:
    return f"{os.getpid()} {psutil.Process().create_time()} {launch}"


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
