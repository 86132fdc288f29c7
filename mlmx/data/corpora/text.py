"""Plain text."""

from __future__ import annotations

from collections.abc import Iterator

from mlmx.data.corpora.records import Record, RecordCorpus
from mlmx.data.text_files import estimate_lines, find_files, read_lines


class TextCorpus(RecordCorpus):
    """Plain text files, one sentence or one document a line.

    Args:
        path: a file, a glob, or a list of either; compressed files (gz, bz2, xz, zst) are read as they are.
        language: the code of the language.
    """

    def __init__(self, *, path: str | list[str], language: str) -> None:
        self.path = path
        self.parallel = False
        self.languages = (language,)
        self.skipped = {}

    def records(self) -> Iterator[Record]:
        for file in find_files(self.path):
            for where, line in read_lines(file):
                yield where, (line,)

    def __len__(self) -> int:
        return estimate_lines(find_files(self.path))
