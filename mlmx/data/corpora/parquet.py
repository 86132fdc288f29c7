"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator

from mlmx.data.corpora.records import Record, RecordCorpus, count_parquet, read_parquet
from mlmx.data.text_files import find_files


class ParquetCorpus(RecordCorpus):
    """Parquet files, the text in one of their columns.

    Args:
        path: a file, a glob, or a list of either.
        column: the column with the text; ``a.b`` is field ``b`` of the struct in column ``a``.
        language: the code of the language.
    """

    def __init__(self, *, path: str | list[str], column: str, language: str) -> None:
        self.path = path
        self.column = column
        self.parallel = False
        self.languages = (language,)
        self.skipped = {}

    def records(self) -> Iterator[Record]:
        for file in find_files(self.path):
            yield from read_parquet(file, [self.column])

    def __len__(self) -> int:
        return count_parquet(find_files(self.path))
