"""Tab-separated columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlmx.data.corpora.records import FileCorpus, Record, read_tsv


class TsvCorpus(FileCorpus):
    """Tab-separated files, the text in one of their columns. Quotation marks are part of the text.

    Args:
        path: a file, a glob, or a list of either; compressed files (gz, bz2, xz, zst) are read as they are.
        column: the column with the text: its name, where there is a header, or its index from 0.
        header: whether the first line of each file names the columns.
        language: the code of the language.
    """

    def __init__(self, *, path: str | list[str], column: str | int, header: bool, language: str) -> None:
        super().__init__(path=path, language=language)
        self.column = column
        self.header = header

    def read(self, file: Path) -> Iterator[Record]:
        return read_tsv(file, [self.column], self.header)
