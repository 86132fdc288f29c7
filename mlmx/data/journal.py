"""How far something had come when it was last saved: lines of JSON, each on the disk before the next is begun."""

from __future__ import annotations

import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Line = dict[str, Any]


class Journal:
    """A file of lines, each with its own checksum.

    Args:
        path: the file; made new.
        lines: what it holds to begin with.
    """

    def __init__(self, path: Path, lines: list[Line]) -> None:
        temporary = path.with_suffix(".new")
        self._file = temporary.open("wb")
        for line in lines:
            self._file.write(_with_checksum(line))
        self._sync()
        temporary.replace(path)
        sync_folder(path.parent)

    def add(self, line: Line) -> None:
        """Write a line; it is on the disk when this returns."""
        self._file.write(_with_checksum(line))
        self._sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def read_journal(path: Path) -> list[Line]:
    """Return the lines of a journal up to the first that is torn or damaged; none if there is no journal."""
    texts = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    lines: list[Line] = []
    for number, text in enumerate(texts, start=1):
        checksum, _, content = text.partition(b" ")
        if checksum != _checksum(content) or not content.endswith(b"\n"):
            # Who is killed while writing leaves half a line at the end.
            if number < len(texts):
                log.warning("%s is damaged in line %d of %d; what was saved from there on is made anew", path, number, len(texts))
            break
        lines.append(json.loads(content))
    return lines


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder's files to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _with_checksum(line: Line) -> bytes:
    content = json.dumps(line, ensure_ascii=True).encode() + b"\n"
    return _checksum(content) + b" " + content


def _checksum(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)
