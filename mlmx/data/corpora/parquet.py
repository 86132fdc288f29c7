"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlmx.data.corpora.records import FileCorpus, Record, count_parquet, read_parquet
from mlmx.data.text_files import find_files


class ParquetCorpus(FileCorpus):
    """Parquet files, the text in one of their columns.

    Args:
        path: a file, a glob, or a list of either.
        column: the column with the text; ``a.b`` is field ``b`` of the struct in column ``a``.
        language: the code of the language.
    """

    def __init__(self, *, path: str | list[str], column: str, language: str) -> None:
        super().__init__(path=path, language=language)
        self.column = column

    def read(self, file: Path) -> Iterator[Record]:
        return read_parquet(file, [self.column])

    def __len__(self) -> int:
        return count_parquet(find_files(self.path))
