"""Disks that take no more: full, over quota or read-only. That is told as what the user can mend, not as a traceback."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlmx.errors import UserError, user_error

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# As they appear in errors of libraries that are no OSError, such as safetensors' own.
_WORDS = re.compile("|".join(re.escape(os.strerror(number)) for number in _NUMBERS))
_PROBE_BYTES = 64 * 2**10
_MEBIBYTE = 2**20


@contextmanager
def told_if_full(folder: Path) -> Iterator[None]:
    """Turn the error of a disk that takes no more into the user's error.

    Args:
        folder: where results go.

    Raises:
        UserError: naming the folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NUMBERS:
            raise
        raise _full(folder, os.strerror(error.errno)) from error


def storage_error(text: str, folder: Path) -> UserError | None:
    """Return the user's error if a message tells of a disk that takes no more, or if the folder's is one.

    Args:
        text: what a worker said when it failed; it may not have been able to say anything.
        folder: where it wrote.
    """
    if found := _WORDS.search(text):
        return _full(folder, found.group())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in _NUMBERS:
            return _full(folder, os.strerror(error.errno))
    return None


def _full(folder: Path, reason: str) -> UserError:
    free = shutil.disk_usage(folder).free / _MEBIBYTE if folder.exists() else 0.0
    message = (
        f"{reason} ({folder}, {free:,.1f} MiB free). What is half written is not used; make room and type the command again, "
        "and it goes on."
    )
    return user_error("outputs", message)
