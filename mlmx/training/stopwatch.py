"""Where the time of a training goes, and how much memory it takes, without making a GPU wait."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from typing import Literal

import torch

Phase = Literal["data", "forward", "backward", "optimizer", "other"]


class Stopwatch:
    """Adds up the time between laps, by phase.

    On CUDA a lap is an event in the stream, read when ``shares`` is called and the GPU has come by: what counts is when it did, and
    waiting for data counts as far as the GPU had nothing else to do.

    Args:
        device: where the work is done.
        enabled: False where nobody will ask; laps are then forgotten.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self._cuda = device.type == "cuda"
        self._enabled = enabled
        self._last: float | torch.cuda.Event = self._now() if enabled else 0.0
        self._laps: deque[tuple[Phase, float | torch.cuda.Event]] = deque()

    def lap(self, phase: Phase) -> None:
        """Say that everything since the last lap belonged to a phase."""
        if self._enabled:
            self._laps.append((phase, self._now()))

    def shares(self) -> dict[str, float]:
        """Return ``time/<phase>``, the phases' shares of the time since the last call."""
        seconds = dict.fromkeys(("data", "forward", "backward", "optimizer", "other"), 0.0)
        while self._laps and _is_past(self._laps[0][1]):
            phase, now = self._laps.popleft()
            seconds[phase] += _between(self._last, now)
            self._last = now
        total = sum(seconds.values())
        return {f"time/{phase}": round(value / total, 4) if total else 0.0 for phase, value in seconds.items()}

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process has had so far: tensors on CUDA; on a CPU, all of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _is_past(moment: float | torch.cuda.Event) -> bool:
    return not isinstance(moment, torch.cuda.Event) or bool(moment.query())  # type: ignore[no-untyped-call]


def _between(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return float(begin.elapsed_time(end)) / 1000.0
    assert isinstance(end, float)
    return end - begin
