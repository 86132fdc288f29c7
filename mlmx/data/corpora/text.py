"""Plain text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlmx.data.corpora.records import FileCorpus, Record
from mlmx.data.text_files import read_lines


class TextCorpus(FileCorpus):
    """Plain text files, one sentence or one document a line.

    Args:
        path: a file, a glob, or a list of either; compressed files (gz, bz2, xz, zst) are read as they are.
        language: the code of the language.
    """

    def read(self, file: Path) -> Iterator[Record]:
        for where, line in read_lines(file):
            yield where, (line,)
