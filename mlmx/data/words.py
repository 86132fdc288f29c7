"""Words of plain text, and how the words of two sources correspond."""

# N words of one source, M words of the other

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmx.data.encoding import punctuation_points

Spans = Sequence[tuple[int, int]]


@cache
def _word_pattern() -> re.Pattern[str]:
    # `\w` would cut Indic words at their vowel signs. Runs of code points keep the expression short.
    ranges: list[tuple[int, int]] = []
    for point in punctuation_points():
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1] = (ranges[-1][0], point)
        else:
            ranges.append((point, point))
    symbols = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)
    return re.compile(rf"[^\s{symbols}]+|[{symbols}]")


def split_words(text: str) -> list[tuple[int, int]]:
    """Return the spans of a text's words: cut at spaces and around each punctuation mark or symbol."""
    return [match.span() for match in _word_pattern().finditer(text)]


JOINERS = (0x200C, 0x200D)
"""Code points that plain words are without: texts of one source often lost those of Indic scripts on the way to another."""


@cache
def separator_points() -> list[int]:
    """Return the code points that part plain words: white space, punctuation marks and symbols."""
    spaces = [point for point in range(sys.maxunicode + 1) if chr(point).isspace()]
    return sorted({*spaces, *punctuation_points()} - {*JOINERS})


class _Plain(dict[int, int | None]):
    # What becomes of each character: a symbol a space, a joiner nothing.

    def __init__(self) -> None:
        super().__init__({**dict.fromkeys(punctuation_points(), ord(" ")), **dict.fromkeys(JOINERS)})

    def __missing__(self, point: int) -> int:
        self[point] = point
        return point


_plain = cache(_Plain)


def plain_words(text: str) -> list[str]:
    """Return a text's words for comparing texts: compatible forms (NFKC) in one case, without punctuation, symbols and joiners."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_plain()).split()


def align(words: NDArray[np.integer[Any]], others: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return, for each word, the other word that shares most characters with it (the first of several), or -1.

    Args:
        words: (N, 2) character spans.
        others: (M, 2) character spans, rising and without overlaps.
    """
    if len(others) == 0 or len(words) == 0:
        return np.full(len(words), -1, np.int64)
    starts, ends = words[:, 0], words[:, 1]
    first = np.searchsorted(others[:, 1], starts, side="right")
    last = np.searchsorted(others[:, 0], ends, side="left") - 1
    found = np.where((first <= last) & (starts < ends), first, -1).astype(np.int64)
    for i in np.flatnonzero((first < last) & (starts < ends)):
        candidates = others[first[i] : last[i] + 1]
        shared = np.minimum(candidates[:, 1], ends[i]) - np.maximum(candidates[:, 0], starts[i])
        found[i] = first[i] + int(np.argmax(shared))
    return found


def mapped_tag(tag: str, tag_map: Mapping[str, str | None] | None) -> str | None:
    """Return what a tag map makes of a tag: tags that it does not name stay, those it maps to null are dropped.

    The prefixes ``B-`` and ``I-`` of entity tags stay in front, unless the map names the tag with its prefix.
    """
    if tag_map is None:
        return tag
    if tag in tag_map:
        return tag_map[tag]
    prefix, separator, name = tag.partition("-")
    if separator and prefix in ("B", "I") and name in tag_map:
        mapped = tag_map[name]
        return mapped if mapped in (None, "O") else f"{prefix}-{mapped}"
    return tag
