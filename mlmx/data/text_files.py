"""Text files as they come: compressed or not, one or many, UTF-8 or a clear error."""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from mlmx.errors import Problem, UserError, nearest, user_error

_SAMPLE_BYTES = 1 << 20
_COMPRESSIONS = ("", ".gz", ".bz2", ".xz", ".zst")

# How files begin that are no UTF-8, and what to do about it.
_SIGNATURES = {
    b"\xff\xfe": "the file is UTF-16; convert it to UTF-8.",
    b"\xfe\xff": "the file is UTF-16; convert it to UTF-8.",
    b"\x1f\x8b": "the file is compressed by gzip; its name must end in .gz.",
    b"\xfd7zXZ": "the file is compressed by xz; its name must end in .xz.",
    b"\x28\xb5\x2f\xfd": "the file is compressed by zstd; its name must end in .zst.",
    b"PK\x03\x04": "the file is a ZIP archive; unpack it.",
}


def find_files(path: str | Sequence[str], setting: str = "corpus.path") -> list[Path]:
    """Return the files that a setting names, in the order given; those of a glob sorted.

    Args:
        path: a file, a glob, or several of either.
        setting: the setting's name, for messages.

    Raises:
        UserError: for every entry that names no file.
    """
    files: list[Path] = []
    problems: list[Problem] = []
    for entry in [path] if isinstance(path, str) else path:
        name = str(Path(entry).expanduser())
        # A file may have brackets in its name, so that it looks like a glob.
        matches = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - absolute patterns too
        found = [Path(match) for match in matches]
        found = [file for file in found if not file.is_dir()] if len(found) > 1 else found
        if not found:
            problems.append(_missing(entry, setting))
        elif found[0].is_dir():
            problems.append(Problem(setting, f"{entry} is a folder; name its files, such as {entry.rstrip('/')}/*.txt."))
        files += found
    if not files and not problems:
        problems.append(Problem(setting, "names no file."))
    if problems:
        raise UserError(problems)
    return files


def _missing(entry: str, setting: str) -> Problem:
    if glob.has_magic(entry):
        return Problem(setting, f"no file matches {entry!r}.")
    folder = Path(entry).parent
    if not folder.is_dir():
        return Problem(setting, f"there is no file {entry!r}; its folder does not exist either.")
    close = nearest(Path(entry).name, [file.name for file in folder.iterdir()])
    return Problem(setting, f"there is no file {entry!r}.", None if close is None else str(folder / close))


def plain_or_compressed(path: Path) -> Path | None:
    """Return the file, or a compressed one of its name (``a.tsv.gz`` for ``a.tsv``), or None if there is neither."""
    return next((file for ending in _COMPRESSIONS if (file := path.with_name(path.name + ending)).is_file()), None)


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file, decompressing it if its name ends in gz, bz2, xz, lzma or zst."""
    ending = path.suffix.lower()
    if ending == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if ending == ".bz2":
        return bz2.open(path)
    if ending in (".xz", ".lzma"):
        return lzma.open(path)
    if ending in (".zst", ".zstd"):
        # Comes with `datasets`, and reads what Python's own library learns only in 3.14.
        import io

        import pyarrow

        stream: Any = pyarrow.input_stream(str(path), compression="zstd")
        return io.BufferedReader(stream)
    return path.open("rb")


def format_of(path: Path) -> str:
    """Return the ending that tells a file's format, that of the compression set aside: ``a.tsv.gz`` is ``tsv``."""
    endings = [ending.lower().lstrip(".") for ending in path.suffixes]
    while endings and endings[-1] in ("gz", "bz2", "xz", "lzma", "zst", "zstd"):
        endings.pop()
    return endings[-1] if endings else ""


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of a text file with their places (``corpus.txt:12``), without line ends.

    A line ends at a line feed, with or without a carriage return, and at nothing else (U+2028 may stand inside a sentence).

    Raises:
        UserError: if the file does not exist, is empty, not UTF-8, or broken off inside its compression.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    _check_beginning(path, line)
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    byte = line[error.start]
                    message = f"byte {error.start + 1} of the line (0x{byte:02x}) is not UTF-8; convert the file to UTF-8."
                    raise user_error(f"{path}:{number}", message) from error
                # Some editors begin a file with a byte order mark.
                yield f"{path}:{number}", text.rstrip("\r\n").removeprefix("\ufeff" if number == 1 else "")
    except FileNotFoundError as error:
        raise user_error(str(path), "no such file.") from error
    except IsADirectoryError as error:
        raise user_error(str(path), "is a folder; a file is needed.") from error
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise user_error(f"{path}:{number + 1}", f"cannot be read on: {error}.") from error
    if number == 0:
        raise user_error(str(path), "the file is empty.")


def _check_beginning(path: Path, line: bytes) -> None:
    for signature, message in _SIGNATURES.items():
        if line.startswith(signature):
            raise user_error(str(path), message)
    if b"\0" in line:
        raise user_error(f"{path}:1", "holds NUL bytes, as UTF-16 and binary files do; UTF-8 text is needed.")


def estimate_lines(paths: Sequence[Path]) -> int:
    """Return about how many lines some files have, judged by the beginning of each; for progress bars."""
    total = 0.0
    for path in paths:
        try:
            size = path.stat().st_size
            with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else open_bytes(path) as file:
                lines = file.read(_SAMPLE_BYTES).count(b"\n")
                if not file.read(1):
                    total += lines
                    continue
                # How much of the compressed file the sample took up; for other compressions a guess.
                taken = raw.tell() if path.suffix == ".gz" else _SAMPLE_BYTES / (1 if file.__class__.__module__ == "_io" else 4)
            total += lines * size / max(taken, 1)
        except (OSError, EOFError, zlib.error, lzma.LZMAError):
            return 0
    return int(total)
