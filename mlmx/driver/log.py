"""The log of a stage: shown as it grows, and its last lines."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path


class LogFollower:
    """Shows what workers write into a log. They write into the file itself, so that nothing is lost when the driver is killed.

    Args:
        path: the log; need not exist yet.
        show: given what is new.

    Attributes:
        path: the log.
        begin: its size at first, in bytes; what comes before it was said by earlier workers.
    """

    def __init__(self, path: Path, show: Callable[[str], None]) -> None:
        self.path = path
        self.begin = path.stat().st_size if path.exists() else 0
        self._show = show
        self._position = self.begin
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def follow(self) -> None:
        """Show what is new."""
        with self.path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        self._position += len(data)
        if text := self._decoder.decode(data):
            self._show(text)


def tail_of(path: Path, num_lines: int, begin: int = 0) -> list[str]:
    """Return the last lines of a log, of what comes after its first ``begin`` bytes."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(begin, path.stat().st_size - 200 * num_lines))
        text = file.read().decode("utf-8", "replace").replace("\r", "\n").rstrip()
    return text.split("\n")[-num_lines:] if text else []
