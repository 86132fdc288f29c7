"""Records of named columns, out of TSV, JSONL and Parquet files alike."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlmx.data.corpus import NUM_NAMED, Corpus, Example, Segment
from mlmx.data.text_files import estimate_lines, find_files, format_of, read_lines
from mlmx.errors import nearest, user_error

Column = str | int
Record = tuple[str, tuple[str | None, ...]]
"""Where the record stands, and the values of the columns asked for; None where there is no value."""

BLANK = "blank"
_SURROGATE = re.compile("[\ud800-\udfff]")


class RecordCorpus(Corpus):
    """A corpus of records: one column per side. Records with an empty side are skipped and counted.

    Args:
        source: where they come from, for messages.
        side_languages: the code of the language of each side.
    """

    def __init__(self, *, source: str, side_languages: Sequence[str]) -> None:
        self.source = source
        self.side_languages = tuple(side_languages)
        self.num_sides = len(self.side_languages)
        self.languages = tuple(dict.fromkeys(side_languages))
        self.skipped = {}
        self.skipped_at: list[str] = []

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """Yield the records."""

    def examples(self) -> Iterator[Example]:
        self.skipped, self.skipped_at = {}, []
        has_examples = False
        for where, values in self.records():
            texts = [(value or "").strip() for value in values]
            if not all(texts):
                self.skipped[BLANK] = self.skipped.get(BLANK, 0) + 1
                if len(self.skipped_at) < NUM_NAMED:
                    self.skipped_at.append(where)
                continue
            has_examples = True
            yield Example(where, tuple(Segment(text, language) for text, language in zip(texts, self.side_languages, strict=True)))
        if not has_examples:
            raise user_error(self.source, f"no line has text{' on every side' if self.num_sides > 1 else ''}.")


def joined(path: str | list[str]) -> str:
    """Return a file, a glob, or a list of either as one text, for messages."""
    return ", ".join([path] if isinstance(path, str) else path)


class FileCorpus(RecordCorpus):
    """Files of records in one language."""

    def __init__(self, *, path: str | list[str], language: str) -> None:
        super().__init__(source=joined(path), side_languages=[language])
        self.path = path

    @abstractmethod
    def read(self, file: Path) -> Iterator[Record]:
        """Yield the records of a file."""

    def records(self) -> Iterator[Record]:
        for file in find_files(self.path):
            yield from self.read(file)

    def __len__(self) -> int:
        return estimate_lines(find_files(self.path))


class ColumnsCorpus(RecordCorpus):
    """TSV, JSONL or Parquet files with a column for each side."""

    def __init__(
        self, *, path: str | list[str], file_format: str, columns: Sequence[Column], header: bool, side_languages: Sequence[str]
    ) -> None:
        super().__init__(source=joined(path), side_languages=side_languages)
        self.path = path
        self.columns = columns
        self.header = header
        self._format = file_format

    def records(self) -> Iterator[Record]:
        read = reader_for(self.file_format, self.header)
        if read is None:
            first = find_files(self.path)[0]
            raise user_error("corpus.format", f"{first} is no TSV, JSONL or Parquet file by its ending; say which it is.")
        for file in find_files(self.path):
            yield from read(file, self.columns)

    def __len__(self) -> int:
        files = find_files(self.path)
        return count_parquet(files) if self.file_format == "parquet" else estimate_lines(files)

    @property
    def file_format(self) -> str:
        """The format that the files are said to have, or have by the first one's name."""
        return format_of(find_files(self.path)[0]) if self._format == "auto" else self._format


def read_jsonl(path: Path, columns: Sequence[Column]) -> Iterator[Record]:
    """Yield fields of the JSON objects in a file, one a line; ``a.b`` is field ``b`` of the object in field ``a``."""
    for where, line in read_lines(path):
        if not line.strip():
            yield where, (None,) * len(columns)
            continue
        record = json_object(where, line)
        yield where, tuple(field_of(record, column, where) for column in columns)


def json_object(where: str, line: str) -> dict[str, Any]:
    """Return the object that a line of JSON holds.

    Raises:
        UserError: if it holds none.
    """
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise user_error(where, f"is not JSON: {error.msg} at character {error.pos + 1}.") from error
    except (ValueError, RecursionError) as error:
        # JSON to the letter, but more than Python reads: numbers of thousands of digits, brackets in thousands of brackets.
        raise user_error(where, f"cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise user_error(where, f"is a JSON {type(value).__name__}, not an object with fields.")
    return value


def field_of(record: Mapping[str, Any], column: Column, where: str) -> str | None:
    """Return a text field of a record, None if it is null.

    Raises:
        UserError: if the record has no such field, or it holds no text.
    """
    value: Any = record
    if column in record:
        value = record[column]  # type: ignore[index]
    else:
        for part in str(column).split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise _missing_column(where, column, list(value if isinstance(value, Mapping) else record))
            value = value[part]
    if value is not None and not isinstance(value, str):
        raise user_error(where, f"column {column!r} holds a {type(value).__name__}, not a text.")
    return value if value is None else check_characters(value, column, where)


def check_characters(text: str, column: Column, where: str) -> str:
    r"""Return a text of a JSON file.

    Raises:
        UserError: if it holds half of a character, which JSON can spell (``\ud83d``) and no tokenizer takes.
    """
    if _SURROGATE.search(text):
        raise user_error(where, f"column {column!r} holds half of a surrogate pair, which is no character.")
    return text


def read_tsv(path: Path, columns: Sequence[Column], header: bool) -> Iterator[Record]:
    """Yield columns of a tab-separated file. Quotation marks mean nothing: a field may contain and begin with them.

    Args:
        path: the file.
        columns: names, where the file has a header, or indices from 0.
        header: whether the first line names the columns.

    Raises:
        UserError: for a line that lacks a column asked for, or has more fields than the first line of the file: one of its texts
            has a tab in it, and would be read in part.
    """
    lines = read_lines(path)
    names: list[str] = []
    most = 0
    if header:
        where, line = next(lines)
        names = [name.strip() for name in line.split("\t")]
        most = len(names)
    indices = [_tsv_index(str(path), column, names, header) for column in columns]
    for where, line in lines:
        if not line.strip():
            yield where, (None,) * len(columns)
            continue
        fields = line.split("\t")
        if max(indices) >= len(fields):
            column = columns[indices.index(max(indices))]
            message = f"has {len(fields)} columns, so that column {column!r} is missing."
            raise user_error(where, message)
        most = most or len(fields)
        if len(fields) > most:
            raise user_error(where, f"has {len(fields)} fields, more than the {most} of the first line; is there a tab in a text?")
        yield where, tuple(fields[index] for index in indices)


def _tsv_index(where: str, column: Column, names: Sequence[str], header: bool) -> int:
    if isinstance(column, int) or (column.isdigit() and column not in names):
        if int(column) < 0:
            raise user_error(where, f"column {column} is not valid: columns are indices from 0.")
        if header and int(column) >= len(names):
            raise _missing_column(where, column, names)
        return int(column)
    if not header:
        message = f"column {column!r} is a name, but without a header (header=false) columns are indices from 0."
        raise user_error(where, message)
    if column not in names:
        raise _missing_column(where, column, names, " If the first line is no header, set header=false and give indices from 0.")
    return names.index(column)


def read_parquet(path: Path, columns: Sequence[Column]) -> Iterator[Record]:
    """Yield columns of a Parquet file, a batch of rows at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            available = file.schema_arrow.names
            tops = [column if column in available else str(column).split(".")[0] for column in columns]
            for column, top in zip(columns, tops, strict=True):
                if top not in available:
                    raise _missing_column(str(path), column, available)
            number = 0
            for batch in file.iter_batches(batch_size=1000, columns=list(dict.fromkeys(tops))):
                for record in batch.to_pylist():
                    number += 1
                    where = f"{path}:{number}"
                    yield where, tuple(field_of(record, column, where) for column in columns)
            if number == 0:
                raise user_error(str(path), "the file is empty.")
    except pyarrow.ArrowInvalid as error:
        raise user_error(str(path), f"is no Parquet file: {error}") from error
    except OSError as error:
        raise user_error(str(path), f"cannot be read on: {error}") from error


def count_parquet(paths: Sequence[Path]) -> int:
    """Return how many rows some Parquet files have; 0 if one cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        return sum(pyarrow.parquet.read_metadata(path).num_rows for path in paths)
    except (pyarrow.ArrowInvalid, OSError):
        return 0


def reader_for(file_format: str, header: bool) -> Callable[[Path, Sequence[Column]], Iterator[Record]] | None:
    """Return the function that reads records of a format (``jsonl``, ``tsv``, ``parquet``), None for another format."""
    if file_format in ("tsv", "tab"):
        return lambda path, columns: read_tsv(path, columns, header)
    return {"jsonl": read_jsonl, "ndjson": read_jsonl, "parquet": read_parquet}.get(file_format)


def _missing_column(where: str, column: Column, available: Sequence[str], advice: str = "") -> Exception:
    names = ", ".join(map(repr, available))
    close = nearest(str(column), available)
    return user_error(where, f"there is no column {column!r}; there are: {names}." + (advice if close is None else ""), close)
