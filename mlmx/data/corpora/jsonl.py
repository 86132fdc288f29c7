"""JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlmx.data.corpora.records import FileCorpus, Record, read_jsonl


class JsonLinesCorpus(FileCorpus):
    """Files with one JSON object a line, the text in one of its fields.

    Args:
        path: a file, a glob, or a list of either; compressed files (gz, bz2, xz, zst) are read as they are.
        column: the field with the text; ``a.b`` is field ``b`` of the object in field ``a``.
        language: the code of the language.
    """

    def __init__(self, *, path: str | list[str], column: str, language: str) -> None:
        super().__init__(path=path, language=language)
        self.column = column

    def read(self, file: Path) -> Iterator[Record]:
        return read_jsonl(file, [self.column])
