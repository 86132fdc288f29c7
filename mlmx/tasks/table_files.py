"""Reading labelled data from plain files, compressed or not, with errors that name file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from mlmx.data.corpora.records import check_characters, json_object
from mlmx.data.text_files import format_of, read_lines
from mlmx.errors import Problem, UserError, nearest, user_error

Record = dict[str, str]
Item = TypeVar("Item")


def read_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Yield ``file:line`` and the named columns of every record of a JSONL, TSV or CSV file.

    TSV and CSV have a header line. A TSV field is taken as it is (quotes mean nothing); CSV follows the rules of the ``csv``
    module. Numbers and booleans of JSONL become text; null becomes "", and so does NaN, which pandas writes for it.

    Raises:
        UserError: if the format is unknown or a column is missing; the message names the columns there are.
    """
    kind = format_of(path)
    if kind in ("jsonl", "ndjson"):
        yield from _jsonl_records(path, columns)
    elif kind in ("tsv", "csv"):
        yield from _table_records(_csv_rows(path) if kind == "csv" else _tsv_rows(path), columns)
    else:
        raise user_error(str(path), "unknown format; allowed are .jsonl, .tsv and .csv, each also as .gz, .bz2, .xz or .zst.")


def read_tsv(
    path: Path, columns: Sequence[str], *, header: Sequence[str] | None = None, ragged: list[str] | None = None
) -> Iterator[tuple[str, Record]]:
    """Yield ``file:line`` and the named columns of a TSV file. A field is taken as it is: quotes mean nothing.

    Args:
        path: the file.
        columns: those that are needed.
        header: the columns of a file that has no line for them.
        ragged: takes the places of lines with fewer or more fields than columns, which are left out; without it, they are errors.

    Raises:
        UserError: for a ragged line, and if a column is missing; the message names the columns there are.
    """
    return _table_records(_tsv_rows(path), columns, header, ragged)


def read_columns(path: Path, num_columns: int) -> Iterator[tuple[str, list[str]]]:
    r"""Yield ``file:line`` and the fields of a TSV file without header; the last field keeps further tabs.

    Raises:
        UserError: if a line has fewer fields.
    """
    for where, line in _filled_lines(path):
        fields = line.split("\t", num_columns - 1)
        if len(fields) < num_columns:
            raise user_error(where, f"{num_columns} fields separated by tabs are expected, found {len(fields)}.")
        yield where, fields


def _filled_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of fields that are not blank (tabs alone part empty fields); there must be one."""
    return _not_empty(path, ((where, line) for where, line in read_lines(path) if line.strip() or "\t" in line))


def _not_empty(path: Path, found: Iterator[tuple[str, Item]]) -> Iterator[tuple[str, Item]]:
    """Yield what is found in a file.

    Raises:
        UserError: if that is nothing.
    """
    first = next(found, None)
    if first is None:
        raise user_error(str(path), "the file is empty.")
    yield first
    yield from found


def check_columns(columns: Sequence[str], available: Sequence[str], where: str) -> None:
    """Check that a record has columns, each of them once.

    Raises:
        UserError: naming every column that it has not, or has twice.
    """
    wrong = [column for column in columns if available.count(column) != 1]
    if wrong:
        raise UserError([_column_problem(column, available, where) for column in wrong])


def _column_problem(column: str, available: Sequence[str], where: str) -> Problem:
    if column in available:
        return Problem(where, f"several columns are called {column!r}.")
    message = f"no column {column!r}; there are {', '.join(map(repr, available))}."
    if len(available) == 1 and set(available[0]) & set(",;\t"):
        return Problem(where, f"{message} Are the columns separated by something else?")
    return Problem(where, message, nearest(column, available))


def _jsonl_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    for where, line in _not_empty(path, ((where, line) for where, line in read_lines(path) if line.strip())):
        value = json_object(where, line)
        check_columns(columns, list(value), where)
        yield where, {column: _text(value[column], column, where) for column in columns}


def _text(value: object, column: str, where: str) -> str:
    if isinstance(value, str):
        return check_characters(value, column, where)
    if value is None or value != value:  # only NaN differs from itself
        return ""
    if isinstance(value, list | dict):
        raise user_error(where, f"column {column!r} holds a {type(value).__name__}; a text, a number or a boolean is needed.")
    return json.dumps(value)


def _table_records(
    rows: Iterator[tuple[str, list[str]]],
    columns: Sequence[str],
    header: Sequence[str] | None = None,
    ragged: list[str] | None = None,
) -> Iterator[tuple[str, Record]]:
    if header is None:
        where, header = next(rows)
        check_columns(columns, header, where)
    where_in_row = [header.index(column) for column in columns]
    for where, row in rows:
        if len(row) == len(header):
            yield where, {column: row[i] for column, i in zip(columns, where_in_row, strict=True)}
        elif ragged is None:
            raise user_error(where, f"{len(row)} fields, but there are {len(header)} columns: {', '.join(header)}.")
        else:
            ragged.append(where)


def _tsv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    return ((where, line.split("\t")) for where, line in _filled_lines(path))


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the last line of each row, which may have several, and its fields."""
    place = ""

    def lines() -> Iterator[str]:
        nonlocal place
        for where, line in read_lines(path):
            place = where
            yield line + "\n"

    try:
        # A blank line is none of the rows, but may stand inside a field.
        rows = ((place, row) for row in csv.reader(lines(), strict=True) if len(row) > 1 or "".join(row).strip())
        yield from _not_empty(path, rows)
    except csv.Error as error:
        raise user_error(place, f"is not CSV: {error}; is a quotation mark not closed?") from error
