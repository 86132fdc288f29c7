"""Signals that ask a driver to end, noted so that the workers can be ended first."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import psutil

from mlmx.driver.say import say
from mlmx.driver.sweep import stage_is_running

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Notes the signals that arrive while it is entered."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._previous: dict[int, Any] = {}

    @property
    def num_received(self) -> int:
        return len(self.received)

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
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


@contextmanager
def time_limit(minutes: float | None) -> Iterator[None]:
    """End this process as SIGTERM does, when it has lived for so long: a training then writes a checkpoint.

    Args:
        minutes: since this process began; None: no limit.
    """
    if minutes is None:
        yield
        return

    def end() -> None:
        say(f"the {minutes:g} minutes of parallel.time_limit_minutes are over; the same command goes on from here.")
        os.kill(os.getpid(), signal.SIGTERM)

    left = 60.0 * minutes - (time.time() - psutil.Process().create_time())
    timer = threading.Timer(max(0.0, left), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
