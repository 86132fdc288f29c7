"""Parallel text: pairs of sentences that mean the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from mlmx.data.corpora.records import ColumnsCorpus, Record, reader_for
from mlmx.data.text_files import estimate_lines, find_files, read_lines
from mlmx.errors import user_error

Format = Literal["auto", "text", "tsv", "jsonl", "parquet"]


class ParallelCorpus(ColumnsCorpus):
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
        names = languages if columns is None else columns
        super().__init__(path=path, file_format=format, columns=names, header=header, side_languages=languages)

    def records(self) -> Iterator[Record]:
        if not self._is_text():
            yield from super().records()
            return
        for first, second in zip(*self._sides(), strict=True):
            yield from _paired_lines(first, second)

    def __len__(self) -> int:
        return estimate_lines(self._sides()[0]) if self._is_text() else super().__len__()

    def _is_text(self) -> bool:
        return reader_for(self.file_format, self.header) is None

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
