"""Parts of speech by type: each word has the tag it has most often."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from mlmx.data.corpus import Annotation, Annotator, Segment
from mlmx.data.text_files import find_files, format_of, read_lines
from mlmx.data.words import mapped_tag, split_words
from mlmx.errors import user_error

Entry = tuple[str, str, int]
"""A word, one of its tags, and how often it has it."""


class DictionaryAnnotator(Annotator):
    """Looks each word up in a dictionary, as LEM does for parts of speech.

    A word with several tags has the most frequent of them (after mapping; the first in the file of equally frequent ones).

    Args:
        paths: language -> file or files. Languages that are not named stay without annotation.
        format: ``tsv``: word, tag and optionally a count; ``tnt``: a lexicon of the tagger TnT: word, count, then tags with their
            counts; ``auto`` takes ``.lex`` files for TnT's.
        layer: which layer the tags fill.
        fold_case: whether upper and lower case are the same.
        tag_map: tag -> class; null for a tag to drop, tags that are not named stay. Null for no map.
        punctuation: tag of words without a letter or digit that the dictionary lacks; null for none.
        number: tag of words that begin with a digit and that the dictionary lacks; null for none.
    """

    def __init__(
        self,
        *,
        paths: dict[str, str | list[str]],
        format: Literal["auto", "tsv", "tnt"],  # noqa: A002 - the setting's name
        layer: Literal["pos", "entity"],
        fold_case: bool,
        tag_map: dict[str, str | None] | None,
        punctuation: str | None,
        number: str | None,
    ) -> None:
        if not paths:
            raise user_error("annotator.paths", "names no dictionary: paths={<language>: <file>}.")
        self.layers = (layer,)
        self.fold_case = fold_case
        self.tag_map = tag_map
        self.punctuation = punctuation
        self.number = number
        self.entries = {
            language: self._load(find_files(path, f"annotator.paths.{language}"), format) for language, path in paths.items()
        }

    def annotate(self, segments: Sequence[Segment]) -> list[Annotation]:
        annotations = []
        for segment in segments:
            words = split_words(segment.text) if segment.words is None else segment.words
            entries = self.entries.get(segment.language)
            tags = [None if entries is None else self._tag(segment.text[start:end], entries) for start, end in words]
            annotations.append(Annotation(words, {self.layers[0]: tags}))
        return annotations

    def _tag(self, word: str, entries: Mapping[str, str]) -> str | None:
        tag = entries.get(self._folded(word))
        if tag is None and word[:1].isdigit():
            return self.number
        if tag is None and word and not any(character.isalnum() for character in word):
            return self.punctuation
        return tag

    def _folded(self, word: str) -> str:
        return word.casefold() if self.fold_case else word

    def _load(self, files: Sequence[Path], file_format: str) -> dict[str, str]:
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for file in files:
            tnt = file_format == "tnt" or (file_format == "auto" and format_of(file) == "lex")
            for word, tag, count in _read_tnt(file) if tnt else _read_tsv(file):
                if (mapped := mapped_tag(tag, self.tag_map)) is not None:
                    counts[self._folded(word)][mapped] += count
        return {word: tags.most_common(1)[0][0] for word, tags in counts.items()}


def _read_tsv(path: Path) -> Iterator[Entry]:
    for where, line in read_lines(path):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) < 2:
            raise user_error(where, "has one column; a dictionary has a word, a tag and optionally a count.")
        count = columns[2].strip() if len(columns) > 2 else "1"
        if not count.isdecimal():
            raise user_error(where, f"{count!r} in the third column is no count.")
        yield columns[0].strip(), columns[1].strip(), int(count)


def _read_tnt(path: Path) -> Iterator[Entry]:
    for where, line in read_lines(path):
        # Lines that begin with %% are comments, with @ classes of numbers.
        if not line.strip() or line.startswith(("%%", "@")):
            continue
        columns = [column for column in line.split("\t") if column]
        if len(columns) % 2 or len(columns) < 4 or not all(column.strip().isdecimal() for column in columns[1::2]):
            raise user_error(where, "is no entry of a TnT lexicon (word, count, then tags with their counts).")
        for tag, count in zip(columns[2::2], columns[3::2], strict=True):
            yield columns[0].strip(), tag.strip(), int(count)
