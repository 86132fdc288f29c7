"""Parallel text: pairs of sentences that mean the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from mlmx.data.corpora.records import Column, Record, RecordCorpus, count_parquet, reader_for
from mlmx.data.text_files import estimate_lines, find_files, format_of, read_lines
from mlmx.errors import user_error

Format = Literal["auto", "text", "tsv", "jsonl", "parquet"]


class ParallelCorpus(RecordCorpus):
    """Pairs of sentences: two text files line by line, or two columns of TSV, JSONL or Parquet files.

    Args:
        path: for two columns a file, a glob, or a list of either. For two text files (``format: text``) a list of two: the file,
            or the glob, of each side; globs must match equally many files, which are paired in sorted order.
        format: ``auto`` goes by the ending of the first file (``.tsv``, ``.jsonl``, ``.parquet``, before that of a compression),
            any other ending being text.
        columns: names or indices of the two columns; null takes the language codes as names. Without effect on text files.
        header: whether the first line of a TSV file names the columns. Without effect on other files.
        languages: the codes of the two languages, in the order of the files or columns.
    """

    def __init__(
        self,
        *,
        path: str | list[str],
        format: Format,  # noqa: A002 - the setting's name
        columns: list[str | int] | None,
        header: bool,
        languages: list[str],
    ) -> None:
        if len(languages) != 2 or len(set(languages)) != 2:
            raise user_error("corpus.languages", f"{languages!r}: a parallel corpus has two different languages.")
        if columns is not None and len(columns) != 2:
            raise user_error("corpus.columns", f"{columns!r}: name two columns, or null for those named like the languages.")
        self.path = path
        self.format = format
        self.columns: list[Column] = [*languages] if columns is None else list(columns)
        self.header = header
        self.parallel = True
        self.languages = tuple(languages)
        self.skipped = {}

    def records(self) -> Iterator[Record]:
        if (reader := reader_for(self._format(), self.header)) is None:
            for first, second in zip(*self._sides(), strict=True):
                yield from _paired_lines(first, second)
            return
        for file in find_files(self.path):
            yield from reader(file, self.columns)

    def __len__(self) -> int:
        file_format = self._format()
        if file_format == "parquet":
            return count_parquet(find_files(self.path))
        return estimate_lines(find_files(self.path) if reader_for(file_format, self.header) else self._sides()[0])

    def _format(self) -> str:
        return format_of(find_files(self.path)[0]) if self.format == "auto" else self.format

    def _sides(self) -> tuple[list[Path], list[Path]]:
        if isinstance(self.path, str) or len(self.path) != 2:
            message = f"{self.path!r}: parallel text files are a list of two, one for each of {', '.join(self.languages)}."
            raise user_error("corpus.path", message)
        first, second = (find_files(entry) for entry in self.path)
        if len(first) != len(second):
            raise user_error("corpus.path", f"{self.path[0]!r} matches {len(first)} files, {self.path[1]!r} {len(second)}.")
        return first, second


def _paired_lines(first: Path, second: Path) -> Iterator[Record]:
    counts = [0, 0]
    unpaired = None
    for pair in zip_longest(read_lines(first), read_lines(second)):
        for side in (0, 1):
            counts[side] += pair[side] is not None
        if pair[0] is None or pair[1] is None:
            unpaired = unpaired or (pair[0] or pair[1])[0]
        else:
            yield pair[0][0], (pair[0][1], pair[1][1])
    if unpaired is not None:
        message = f"{first} has {counts[0]} lines, {second} has {counts[1]}; the first line without a partner is {unpaired}."
        raise user_error("corpus.path", message)
