"""How far a training is: a line of text now and then, or a bar that redraws itself where a person looks on."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

# A log file gets a line at the first and the last step, and otherwise at most this often.
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Tells on stderr how far a training is.

    Args:
        name: what is being trained.
        num_steps: of the whole training.
        start: steps that were done before.
        enabled: only the main process talks.
    """

    def __init__(self, name: str, *, num_steps: int, start: int, enabled: bool) -> None:
        self._name = name
        self._num_steps = num_steps
        self._start = start
        self._enabled = enabled
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._last_line = 0.0

    def show(self, record: Mapping[str, Any]) -> None:
        """Show a logged step."""
        now = time.monotonic()
        step = record["step"]
        due = step in (self._start + 1, self._num_steps) or now - self._last_line >= _SECONDS_BETWEEN_LINES
        if not self._enabled or not (self._terminal or due):
            return
        self._last_line = now
        left = (now - self._began) / max(1, step - self._start) * (self._num_steps - step)
        text = (
            f"{self._name}: step {step}/{self._num_steps}, loss {record['loss']:.4f}, "
            f"{record['tokens_per_second']:,.0f} tokens/s, {timedelta(seconds=round(left))} left"
        )
        end = "\n" if not self._terminal or step == self._num_steps else ""
        sys.stderr.write(f"\r\033[K{text}{end}" if self._terminal else f"{text}{end}")
        sys.stderr.flush()
