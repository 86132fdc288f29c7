"""Tokens in columns, as NER and tagging sets have them."""

from __future__ import annotations

from typing import Literal

from mlmx.build import NonNegative
from mlmx.data.corpora.sentences import Block, Sentence, SentenceFiles, columns_of
from mlmx.data.entity_schemes import Scheme
from mlmx.errors import user_error

_DOCUMENT = "-DOCSTART-"


class ConllCorpus(SentenceFiles):
    """CoNLL column files: one token a line, a blank line after each sentence; with gold tags where there are columns for them.

    The text of a sentence is its tokens with spaces between.

    Args:
        path: a file, a glob, or a list of either; compressed files (gz, bz2, xz, zst) are read as they are.
        language: the code of the language.
        token_column: index of the column with the token, from 0.
        pos_column: that of the part of speech; null for none.
        entity_column: that of the entity; null for none.
        entity_scheme: what entities are written in: ``iob1``, ``iob2``, ``iobes``, ``bilou``, or ``detect``, by the tags
            themselves. They are converted to IOB2; tags that contradict the scheme are counted and reported.
        language_column: that of the word's language, in code-mixed text; null for none.
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
        entity_scheme: Scheme | Literal["detect"],
        language_column: NonNegative | None,
        separator: Literal["tab", "space"],
        comment: str | None,
    ) -> None:
        super().__init__(path=path, language=language, entity_scheme=entity_scheme)
        self.token_column = token_column
        columns = {"pos": pos_column, "entity": entity_column, "language": language_column}
        self.tag_columns = {layer: column for layer, column in columns.items() if column is not None}
        self.separator = "\t" if separator == "tab" else None
        self.comment = comment

    def read(self, block: Block) -> Sentence | None:
        needed = [("token_column", self.token_column), *((f"{layer}_column", column) for layer, column in self.tag_columns.items())]
        lines = [item for item in block if self.comment is None or not item[1].startswith(self.comment)]
        for where, line in lines:
            if line.startswith(_DOCUMENT):
                raise user_error(where, f"is no word, but the beginning of a document; set comment to {_DOCUMENT!r}.")
        rows = [(where, columns_of(where, line, lambda text: text.split(self.separator), needed)) for where, line in lines]
        if not rows:
            return None
        for where, row in rows:
            if len(row) != len(rows[0][1]):
                raise user_error(where, f"has {len(row)} columns, but the first line of its sentence {len(rows[0][1])}.")
            if empty := [setting for setting, column in needed if not row[column].strip()]:
                raise user_error(where, f"{empty[0]} holds nothing.")
        return Sentence(
            where=block[0][0],
            places=[where for where, _ in rows],
            words=[row[self.token_column].strip() for _, row in rows],
            spaces=[True] * len(rows),
            tags={layer: [row[column].strip() for _, row in rows] for layer, column in self.tag_columns.items()},
        )
