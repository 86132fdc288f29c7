"""Tab-separated columns."""

from __future__ import annotations

from collections.abc import Iterator

from mlmx.data.corpora.records import Record, RecordCorpus, read_tsv
from mlmx.data.text_files import estimate_lines, find_files


class TsvCorpus(RecordCorpus):
    """Tab-separated files, the text in one of their columns. Quotation marks are part of the text.

    Args:
        path: a file, a glob, or a list of either; compressed files (gz, bz2, xz, zst) are read as they are.
        column: the column with the text: its name, where there is a header, or its index from 0.
        header: whether the first line of each file names the columns.
        language: the code of the language.
    """

    def __init__(self, *, path: str | list[str], column: str | int, header: bool, language: str) -> None:
        self.path = path
        self.column = column
        self.header = header
        self.parallel = False
        self.languages = (language,)
        self.skipped = {}

    def records(self) -> Iterator[Record]:
        for file in find_files(self.path):
            yield from read_tsv(file, [self.column], self.header)

    def __len__(self) -> int:
        return estimate_lines(find_files(self.path))
