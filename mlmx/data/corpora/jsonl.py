"""JSON lines."""

from __future__ import annotations

from collections.abc import Iterator

from mlmx.data.corpora.records import Record, RecordCorpus, read_jsonl
from mlmx.data.text_files import estimate_lines, find_files


class JsonLinesCorpus(RecordCorpus):
    """Files with one JSON object a line, the text in one of its fields.

    Args:
        path: a file, a glob, or a list of either; compressed files (gz, bz2, xz, zst) are read as they are.
        column: the field with the text; ``a.b`` is field ``b`` of the object in field ``a``.
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
            yield from read_jsonl(file, [self.column])

    def __len__(self) -> int:
        return estimate_lines(find_files(self.path))
