"""What a finished stage consists of: the size and the SHA-256 of each of its files, so that damage is seen before it is used.

``manifest.json`` is written after the files and before ``result.json``, and the files are on the disk by then.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

FORMAT = 1


def manifest_of(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return the manifest of a folder, whose files are on the disk, not only in memory, when this returns.

    Args:
        folder: where the files lie.
        names: files, and folders with all that is in them, below ``folder``; those that do not exist are left out.
    """
    files = {}
    for path in sorted(_files(folder, names)):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"sha256": digest, **_stamp(path)}
    return {"format": FORMAT, "files": files}


def damage(folder: Path, manifest: Mapping[str, Any], *, thorough: bool) -> str | None:
    """Return what is wrong with the files of a folder, or None if they are those of the manifest.

    Args:
        folder: where the files lie.
        manifest: what :func:`manifest_of` gave.
        thorough: read them all; otherwise only those whose size or times are others than when the manifest was made.
    """
    for name, written in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        stamp = _stamp(path)
        if stamp["bytes"] != written["bytes"]:
            return f"{name} has {stamp['bytes']} bytes and was written with {written['bytes']}"
        if (thorough or stamp["changed_ns"] != written["changed_ns"]) and _sha256(path) != written["sha256"]:
            return f"{name} is not what was written (its checksum differs)"
    return None


def _files(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        path = folder / name
        if path.is_file():
            yield path
        else:
            yield from (inner for inner in path.rglob("*") if inner.is_file())


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    # Unlike the time of modification, that of change cannot be set back.
    return {"bytes": status.st_size, "changed_ns": status.st_ctime_ns}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
