"""Tokens in columns, as NER and tagging sets have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from mlmx.build import NonNegative
from mlmx.data.corpora.sentences import columns_of, join_words, read_blocks
from mlmx.data.corpus import Corpus, Example, Segment
from mlmx.data.text_files import find_files

NO_WORDS = "sentence without words"


class ConllCorpus(Corpus):
    """CoNLL column files: one token a line, a blank line after each sentence; with gold tags where there are columns for them.

    The text of a sentence is its tokens with spaces between.

    Args:
        path: a file, a glob, or a list of either; compressed files (gz, bz2, xz, zst) are read as they are.
        language: the code of the language.
        token_column: index of the column with the token, from 0.
        pos_column: that of the part of speech; null for none.
        entity_column: that of the entity in IOB2 (``B-PER``, ``I-PER``, ``O``); null for none.
        separator: what parts the columns: a ``tab``, or any ``space``.
        comment: lines that begin with it are left out (``-DOCSTART-``); null for none.
    """

    def __init__(
        self,
        *,
        path: str | list[str],
        language: str,
        token_column: NonNegative,
        pos_column: NonNegative | None,
        entity_column: NonNegative | None,
        separator: Literal["tab", "space"],
        comment: str | None,
    ) -> None:
        self.path = path
        self.token_column = token_column
        self.tag_columns = {
            layer: column for layer, column in (("pos", pos_column), ("entity", entity_column)) if column is not None
        }
        self.separator = "\t" if separator == "tab" else None
        self.comment = comment
        self.parallel = False
        self.languages = (language,)
        self.skipped = {}

    def examples(self) -> Iterator[Example]:
        self.skipped = {}
        needed = [("token_column", self.token_column), *((f"{layer}_column", column) for layer, column in self.tag_columns.items())]
        for file in find_files(self.path):
            for block in read_blocks(file):
                lines = [item for item in block if self.comment is None or not item[1].startswith(self.comment)]
                rows = [columns_of(where, line, lambda text: text.split(self.separator), needed) for where, line in lines]
                rows = [row for row in rows if row[self.token_column].strip()]
                if not rows:
                    self.skipped[NO_WORDS] = self.skipped.get(NO_WORDS, 0) + 1
                    continue
                words = [row[self.token_column].strip() for row in rows]
                text, spans = join_words(words, [True] * len(words))
                tags = {layer: [row[column].strip() for row in rows] for layer, column in self.tag_columns.items()}
                yield Example(block[0][0], (Segment(text, self.languages[0], spans, tags),))
