"""Sentences written one token a line, with a blank line after each: what CoNLL formats have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mlmx.data.text_files import read_lines
from mlmx.errors import user_error

Block = list[tuple[str, str]]
"""The lines of a sentence with their places."""


def read_blocks(path: Path) -> Iterator[Block]:
    """Yield the runs of lines between blank lines."""
    block: Block = []
    for where, line in read_lines(path):
        if line.strip():
            block.append((where, line))
        elif block:
            yield block
            block = []
    if block:
        yield block


def columns_of(where: str, line: str, split: Callable[[str], list[str]], needed: Sequence[tuple[str, int]]) -> list[str]:
    """Return the columns of a line.

    Args:
        where: its place.
        line: the line.
        split: cuts it into columns.
        needed: setting and index of each column that must be there.

    Raises:
        UserError: if one is missing.
    """
    columns = split(line)
    for setting, index in needed:
        if not -len(columns) <= index < len(columns):
            raise user_error(where, f"has {len(columns)} columns, so that column {index} ({setting}) is missing.")
    return columns


def join_words(words: Sequence[str], spaces: Sequence[bool]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of words, and their spans in it.

    Args:
        words: the words.
        spaces: for each whether a space follows it.
    """
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    position = 0
    for word, space in zip(words, spaces, strict=True):
        spans.append((position, position + len(word)))
        parts.append(word + " " * space)
        position += len(word) + space
    return "".join(parts).rstrip(" "), spans
