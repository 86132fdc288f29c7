"""Sentences of words with tags out of datasets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from mlmx.data.corpora.hub import check_pinned, open_dataset
from mlmx.data.corpora.records import check_characters
from mlmx.data.corpora.sentences import Sentence, SentenceCorpus
from mlmx.data.entity_schemes import Scheme
from mlmx.errors import nearest, user_error


class HubWordsCorpus(SentenceCorpus):
    """Words with gold tags from a dataset of the Hugging Face hub, or a local folder that ``datasets`` can load; read as a stream.

    A record is a sentence: a list of its words, and a list of as many tags for each layer, as texts or as classes with names. The
    text of a sentence is its words with spaces between.

    Args:
        name: the repository, or a local folder.
        config: the dataset's configuration; null for the one it has by default.
        split: such as ``train``.
        revision: a commit of the repository. Null is an error unless ``name`` is a local folder: a dataset that may change under
            its name cannot be reproduced.
        language: the code of the language.
        word_column: the column of the words.
        pos_column: that of the parts of speech; null for none.
        entity_column: that of the entities; null for none.
        entity_scheme: what entities are written in: ``iob1``, ``iob2``, ``iobes``, ``bilou``, or ``detect``, by the tags
            themselves. They are converted to IOB2; tags that contradict the scheme are counted and reported.
        language_column: that of the words' languages, in code-mixed text; null for none.
    """

    def __init__(
        self,
        *,
        name: str,
        config: str | None,
        split: str,
        revision: str | None,
        language: str,
        word_column: str,
        pos_column: str | None,
        entity_column: str | None,
        entity_scheme: Scheme | Literal["detect"],
        language_column: str | None,
    ) -> None:
        check_pinned(name, revision, setting="corpus.revision")
        super().__init__(source=f"{name}[{split}]", language=language, entity_scheme=entity_scheme)
        self.name = name
        self.config = config
        self.split = split
        self.revision = revision
        self.word_column = word_column
        columns = {"pos": pos_column, "entity": entity_column, "language": language_column}
        self.tag_columns = {layer: column for layer, column in columns.items() if column is not None}

    def sentences(self) -> Iterator[Sentence | None]:
        table = open_dataset(self.name, self.config, split=self.split, revision=self.revision, setting="corpus.name")
        classes = {column: table.class_names(column) for column in self.tag_columns.values()}
        where = None
        for where, record in table:
            words = _texts(record, self.word_column, None, where)
            tags = {layer: _texts(record, column, classes[column], where) for layer, column in self.tag_columns.items()}
            for layer, of_words in tags.items():
                if len(of_words) != len(words):
                    raise user_error(where, f"has {len(words)} words and {len(of_words)} tags in {self.tag_columns[layer]!r}.")
            yield Sentence(where, [where] * len(words), words, [True] * len(words), tags) if words else None
        if where is None:
            raise user_error("corpus.split", f"{self.split!r} of {self.name} is empty.")


def _texts(record: Mapping[str, Any], column: str, classes: Sequence[str] | None, where: str) -> list[str]:
    # The texts that a column holds in a list; of classes their names.
    if column not in record:
        raise user_error(where, f"there is no column {column!r}; there are {', '.join(record)}.", nearest(column, record))
    values = record[column]
    if classes is not None and isinstance(values, list):
        values = [classes[value] if value in range(len(classes)) else value for value in values]
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise user_error(where, f"column {column!r} is {values!r}; a list of texts is needed, none of them blank.")
    return [check_characters(value.strip(), column, where) for value in values]
