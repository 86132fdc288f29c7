"""Sentences of words with tags: what CoNLL formats, one token a line with a blank line after each sentence, and tables share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlmx.data.corpora.records import joined
from mlmx.data.corpus import Corpus, Example, Segment
from mlmx.data.entity_schemes import EntityTags, Scheme, detect
from mlmx.data.text_files import find_files, read_lines
from mlmx.errors import user_error

Block = list[tuple[str, str]]
"""The lines of a sentence with their places."""

NO_WORDS = "sentence without words"


@dataclass(slots=True)
class Sentence:
    """A sentence as its source has it.

    Attributes:
        where: its place, such as its first line.
        places: that of each word.
        words: the words.
        spaces: for each word whether a space follows it.
        tags: layer -> one tag per word; entities in the scheme of the source.
    """

    where: str
    places: list[str]
    words: list[str]
    spaces: list[bool]
    tags: dict[str, list[str]]


class SentenceCorpus(Corpus):
    """Sentences in one language; their entity tags come out in IOB2.

    Args:
        source: where they come from, for messages.
        language: the code of the language.
        entity_scheme: what the entity tags are written in; ``detect`` reads them once more beforehand.
    """

    def __init__(self, *, source: str, language: str, entity_scheme: Scheme | Literal["detect"]) -> None:
        self.source = source
        self.num_sides = 1
        self.languages = (language,)
        self.skipped = {}
        self._scheme: Scheme | Literal["detect"] = entity_scheme

    @abstractmethod
    def sentences(self) -> Iterator[Sentence | None]:
        """Yield the sentences; None in the place of one without words."""

    def examples(self) -> Iterator[Example]:
        entities: EntityTags | None = None
        has_examples = False
        for sentence in self._sentences():
            has_examples = True
            if "entity" in sentence.tags:
                entities = entities or EntityTags(self._entity_scheme())
                sentence.tags["entity"] = entities.read(sentence.tags["entity"], sentence.places)
            text, spans = join_words(sentence.words, sentence.spaces)
            yield Example(sentence.where, (Segment(text, self.languages[0], spans, sentence.tags),))
        if not has_examples:
            raise user_error(self.source, "no sentence has words.")
        if entities is not None:
            entities.report(self.source)

    def _entity_scheme(self) -> Scheme:
        if self._scheme != "detect":
            return self._scheme
        skipped = dict(self.skipped)
        scheme = detect(sentence.tags["entity"] for sentence in self._sentences())
        self.skipped = skipped
        return scheme

    def _sentences(self) -> Iterator[Sentence]:
        self.skipped = {}
        for sentence in self.sentences():
            if sentence is not None:
                yield sentence
            else:
                self.skipped[NO_WORDS] = self.skipped.get(NO_WORDS, 0) + 1


class SentenceFiles(SentenceCorpus):
    """Files of sentences in one language.

    Args:
        path: a file, a glob, or a list of either.
        language: the code of the language.
        entity_scheme: what the entity tags are written in; ``detect`` reads them once more beforehand.
    """

    def __init__(self, *, path: str | list[str], language: str, entity_scheme: Scheme | Literal["detect"]) -> None:
        super().__init__(source=joined(path), language=language, entity_scheme=entity_scheme)
        self.path = path

    @abstractmethod
    def read(self, block: Block) -> Sentence | None:
        """Return the sentence of a block, None if it has no words."""

    def sentences(self) -> Iterator[Sentence | None]:
        for file in find_files(self.path):
            for block in read_blocks(file):
                yield self.read(block)


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
