"""How far a training is: a line of text now and then, or a bar that redraws itself where a person looks on."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from mlmx.training.budget import Budget, Spent

# A log file gets a line at the first and the last step, and otherwise at most this often.
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Tells on stderr how far a training is.

    Args:
        name: what is being trained.
        budget: when the training ends.
        start: what was spent before.
        enabled: only the main process talks.
    """

    def __init__(self, name: str, *, budget: Budget, start: Spent, enabled: bool) -> None:
        self._name = name
        self._budget = budget
        self._start = start
        self._enabled = enabled
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._last_line = 0.0

    def show(self, spent: Spent, record: Mapping[str, Any]) -> None:
        """Show a logged step."""
        now = time.monotonic()
        last = self._budget.is_spent(spent)
        due = last or spent.steps == self._start.steps + 1 or now - self._last_line >= _SECONDS_BETWEEN_LINES
        if not self._enabled or not (self._terminal or due):
            return
        self._last_line = now
        done = self._budget.progress(spent)
        left = (now - self._began) / max(done - self._budget.progress(self._start), 1e-9) * (1.0 - done)
        text = (
            f"{self._name}: {self._budget.told(spent)}, loss {record['loss']:.4f}, "
            f"{record['tokens_per_second']:,.0f} tokens/s, {timedelta(seconds=round(left))} left"
        )
        end = "\n" if not self._terminal or last else ""
        sys.stderr.write(f"\r\033[K{text}{end}" if self._terminal else f"{text}{end}")
        sys.stderr.flush()
