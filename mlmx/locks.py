"""Locks of the operating system on files: they end with the process that holds them, however that ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def try_lock(file: IO[Any], *, shared: bool = False) -> bool:
    """Take the lock of an open file unless another process holds it; it is held until the file is closed or the process dies."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, *, poll_seconds: float = 0.05) -> Iterator[IO[str]]:
    """Hold the lock of a file, for short pieces of work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        while not try_lock(file):
            time.sleep(poll_seconds)
        yield file
