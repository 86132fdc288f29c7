"""Flat arrays in a folder: written so that an interrupted writing goes on, and read memory-mapped.

Until everything is there the folder is called ``<folder>.partial`` and holds a journal: a line for each time the arrays were saved,
with their sizes and checksums and with what the writer needs to go on. Who opens it again goes on from the last line whose bytes
are all there and right; what was written after it is cut off. So the arrays do not show whether they were interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from mlmx.data.journal import Journal, Line, read_journal, sync_folder
from mlmx.errors import user_error
from mlmx.stage import write_atomically

log = logging.getLogger(__name__)

# What a kill may cost, against the time it takes to sync a dozen files to a slow disk.
_SECONDS_BETWEEN_SAVES = 10.0
_JOURNAL = "journal.jsonl"
_BLOCK_BYTES = 1 << 20

State = dict[str, Any]


@dataclass(slots=True)
class _Written:
    # What an array holds so far.
    dtype: str
    num_bytes: int = 0
    crc32: int = 0


class ArrayWriter:
    """Appends to flat arrays, one file each; memory stays flat.

    Args:
        folder: where they lie in the end. One that is there already is replaced then.
        identity: names everything that the arrays are made from. Only what was begun under the same identity is gone on with; None
            begins anew.

    Attributes:
        state: what was saved with the arrays when they were left; None at the beginning.
    """

    def __init__(self, folder: Path, identity: str | None) -> None:
        self._folder = folder
        self._partial = partial_folder(folder)
        self._identity = identity
        self._files: dict[str, IO[bytes]] = {}
        self._written: dict[str, _Written] = {}
        self.state: State | None = None
        lines = _valid_lines(self._partial, identity)
        if lines:
            self._go_on(lines[-1])
        else:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)
        self._journal = Journal(self._partial / _JOURNAL, lines)
        self._last_save = time.monotonic()

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Append values; their dtype must be the same each time."""
        written = self._written.setdefault(name, _Written(values.dtype.str))
        assert written.dtype == values.dtype.str, (name, values.dtype)
        if name not in self._files:
            self._files[name] = (self._partial / _file_name(name)).open("ab")
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        self._files[name].write(data)
        written.num_bytes += len(data)
        written.crc32 = zlib.crc32(data, written.crc32)

    def save(self, state: State) -> None:
        """Bring everything to the disk, with what is needed to go on after it (JSON)."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        arrays = {name: asdict(written) for name, written in self._written.items()}
        self._journal.add({"identity": self._identity, "arrays": arrays, "state": state})
        self._last_save = time.monotonic()

    def save_now_and_then(self, state: Callable[[], State]) -> None:
        """Save, unless that was done a short time ago."""
        if time.monotonic() - self._last_save >= _SECONDS_BETWEEN_SAVES:
            self.save(state())

    def written(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes that an array held when this writer began, memory-mapped."""
        written = self._written.get(name)
        if written is None or written.num_bytes == 0:
            return np.zeros(0, np.uint8)
        return np.memmap(self._partial / _file_name(name), np.uint8, mode="r", shape=(written.num_bytes,))

    def remove(self) -> None:
        """Delete everything: nobody will go on."""
        self.__exit__(None, None, None)
        shutil.rmtree(self._partial)

    def finish(self, name: str, meta: Mapping[str, Any], state: State) -> dict[str, Any]:
        """Describe the arrays in a JSON file beside them, and give the folder its name.

        Args:
            name: of the file.
            meta: what it holds beside ``identity``, ``dtypes`` and ``bytes`` of the arrays.
            state: as in :meth:`save`; whoever is killed now goes on from here.

        Returns:
            All that the file holds.
        """
        self.save(state)
        complete = {
            **meta,
            "identity": self._identity,
            "dtypes": {array: written.dtype for array, written in self._written.items()},
            "bytes": {array: written.num_bytes for array, written in self._written.items()},
        }
        write_atomically(self._partial / name, json.dumps(complete, ensure_ascii=False, indent=1))
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._partial.replace(self._folder)
        sync_folder(self._folder.parent)
        # Only now, so that whoever is killed before can go on.
        (self._folder / _JOURNAL).unlink()
        return complete

    def _go_on(self, line: Line) -> None:
        self.state = line["state"]
        self._written = {name: _Written(**written) for name, written in line["arrays"].items()}
        for path in self._partial.iterdir():
            if path.name not in (_JOURNAL, *map(_file_name, self._written)):
                path.unlink()
        for name, written in self._written.items():
            os.truncate(self._partial / _file_name(name), written.num_bytes)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._journal.close()
        for file in self._files.values():
            file.close()


def partial_folder(folder: Path) -> Path:
    """Return where the files of a folder lie until they are complete."""
    return folder.with_name(f"{folder.name}.partial")


def finished(folder: Path, name: str, identity: str | None) -> dict[str, Any] | None:
    """Return what :meth:`ArrayWriter.finish` returned for a folder, or None if it never did under this identity.

    Raises:
        UserError: if a file has been damaged since.
    """
    if identity is None or not (folder / name).exists():
        return None
    meta = json.loads((folder / name).read_text("utf-8"))
    if meta.get("identity") != identity:
        return None
    Arrays(folder, meta)
    (folder / _JOURNAL).unlink(missing_ok=True)
    return cast(dict[str, Any], meta)


def _valid_lines(partial: Path, identity: str | None) -> list[Line]:
    # The lines of the journal up to the last whose arrays are as they were saved.
    lines = read_journal(partial / _JOURNAL)
    if not lines or identity is None or lines[0]["identity"] != identity:
        return []
    num_valid = len(lines)
    for name in lines[-1]["arrays"]:
        saved = [_Written(**line["arrays"][name]) if name in line["arrays"] else _Written("") for line in lines]
        path = partial / _file_name(name)
        good = _num_good(path, saved)
        if good < len(lines):
            log.warning(
                "%s is damaged: of the %d times it was saved, the first %d are whole; it is made anew from there.",
                path,
                len(lines),
                good,
            )
        num_valid = min(num_valid, good)
    return lines[:num_valid]


def _num_good(path: Path, saved: Sequence[_Written]) -> int:
    # How many of the first of these a file begins with.
    if not path.exists():
        return 0
    position = crc32 = 0
    with path.open("rb") as file:
        for number, written in enumerate(saved):
            while position < written.num_bytes and (block := file.read(min(_BLOCK_BYTES, written.num_bytes - position))):
                position += len(block)
                crc32 = zlib.crc32(block, crc32)
            if (position, crc32) != (written.num_bytes, written.crc32):
                return number
    return len(saved)


class Arrays:
    """The flat arrays of a folder, memory-mapped when first asked for; pickles as the folder's path.

    Args:
        folder: where they lie.
        meta: what :meth:`ArrayWriter.finish` returned.

    Raises:
        UserError: if a file is missing, or has another size than was written. (That its content is what was written is for the
            stage's manifest to say.)
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        self.folder = folder
        self._dtypes: dict[str, str] = dict(meta["dtypes"])
        self._open: dict[str, NDArray[Any]] = {}
        for name, num_bytes in meta.get("bytes", {}).items():
            path = folder / _file_name(name)
            found = path.stat().st_size if path.exists() else None
            if found != num_bytes:
                state = "is missing" if found is None else f"has {found:,} bytes, not the {num_bytes:,} that were written"
                raise user_error(str(path), f"{state}; make it anew with --fresh, or delete {folder.parent}.")

    def __contains__(self, name: str) -> bool:
        return name in self._dtypes

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._open:
            path = self.folder / _file_name(name)
            dtype = np.dtype(self._dtypes[name])
            # An empty file cannot be mapped.
            mapped = np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
            self._open[name] = np.asarray(mapped).reshape(-1, 2) if name.endswith("_spans") else np.asarray(mapped)
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_dtypes": self._dtypes, "_open": {}}


def _file_name(name: str) -> str:
    return f"{name}.bin"
