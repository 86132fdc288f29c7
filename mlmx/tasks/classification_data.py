"""Labelled sentences."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmx.build import NonNegative, Positive
from mlmx.data.corpora.hub import check_pinned, open_dataset
from mlmx.data.corpora.records import field_of
from mlmx.errors import Problem, UserError, nearest, user_error
from mlmx.tasks.table_files import check_columns, read_records

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Labelled:
    """One labelled sentence.

    Attributes:
        id: unique within its split, such as the number of its line.
        where: where it stands, for messages.
        text: the sentence.
        label: the label's name.
    """

    id: str
    where: str
    text: str
    label: str


class ClassificationData(ABC):
    """A source of labelled sentences. Settings are keyword-only parameters of the constructor.

    Attributes:
        splits: the splits there are; None where only the data tells.
    """

    splits: tuple[str, ...] | None

    @abstractmethod
    def load(self, split: str) -> Sequence[Labelled]:
        """Return the examples of a split, in a fixed order.

        Raises:
            UserError: if there is no such split.
        """


class MicroworldSentiment(ClassificationData):
    """Sentences of the embedded microworld and the sentiment of what they tell.

    Args:
        seed: of the world; that of the corpus, or its words mean something else.
        num_train: examples of split ``train``.
        num_dev: examples of split ``dev``.
        num_test: examples of split ``test``.
        code_mixed: whether the sentences mix both languages.
    """

    def __init__(self, *, seed: NonNegative, num_train: Positive, num_dev: Positive, num_test: Positive, code_mixed: bool) -> None:
        self.seed = seed
        self.sizes = {"train": num_train, "dev": num_dev, "test": num_test}
        self.splits = tuple(self.sizes)
        self.code_mixed = code_mixed

    def load(self, split: str) -> Sequence[Labelled]:
        from mlmx.data.microworld import sentiment_examples

        if split not in self.sizes:
            raise user_error("task data", f"no split {split!r}; there are train, dev and test.", nearest(split, self.sizes))
        texts, labels = sentiment_examples(seed=self.seed, split=split, num_examples=self.sizes[split], code_mixed=self.code_mixed)
        return [Labelled(str(i), f"microworld:{i}", text, label) for i, (text, label) in enumerate(zip(texts, labels, strict=True))]


class ClassificationFiles(ClassificationData):
    """Labelled sentences from JSONL, TSV or CSV files, compressed or not.

    Args:
        path: one file whose ``split_column`` names each line's split; None where there is a file per split.
        train: the file of split ``train``.
        dev: the file of split ``dev``; None if there is none.
        test: the file of split ``test``; None if there is none.
        text_column: the column of the text.
        label_column: the column of the label.
        split_column: the column of the split, with ``path``.
    """

    def __init__(
        self,
        *,
        path: Path | None,
        train: Path | None,
        dev: Path | None,
        test: Path | None,
        text_column: str,
        label_column: str,
        split_column: str | None,
    ) -> None:
        self.paths = {name: file for name, file in {"train": train, "dev": dev, "test": test}.items() if file is not None}
        problems = []
        if path is not None and self.paths:
            problems.append(Problem("task data.path", "is one file with a split column; give it or train, dev and test, not both."))
        if path is None and not self.paths:
            problems.append(Problem("task data.path", "a file must be given: set path and split_column, or train, dev and test."))
        if (path is None) != (split_column is None):
            problems.append(
                Problem("task data.split_column", "names the column of path that holds the split: both or neither are set.")
            )
        if problems:
            raise UserError(problems)
        self.splits = tuple(self.paths) if path is None else None
        self.path = path
        self.text_column = text_column
        self.label_column = label_column
        self.split_column = split_column

    def load(self, split: str) -> Sequence[Labelled]:
        if self.path is None:
            if split not in self.paths:
                raise user_error(
                    f"task data.{split}", f"no file is given for the split {split!r}; there are {', '.join(self.paths)}."
                )
            return self._read(self.paths[split], None)
        return self._read(self.path, split)

    def _read(self, path: Path, split: str | None) -> list[Labelled]:
        # split is None where the whole file is one split.
        columns = [self.text_column, self.label_column]
        if split is not None:
            assert self.split_column is not None
            columns.append(self.split_column)
        splits: Counter[str] = Counter()

        def rows() -> Iterator[tuple[str, str, str]]:
            for where, record in read_records(path, columns):
                if split is not None:
                    splits[record[columns[2]]] += 1
                    if record[columns[2]] != split:
                        continue
                yield where, record[self.text_column], record[self.label_column]

        examples = _labelled(rows(), str(path))
        if not examples:
            found = f"; its splits are {dict(splits)}" if splits else ""
            raise user_error(str(path), f"no labelled line of split {split!r}{found}." if split else "no labelled line.")
        return examples


class ClassificationHub(ClassificationData):
    """Labelled sentences of the Hugging Face hub, or of a local folder that ``datasets`` can load.

    Args:
        name: the repository, or a local folder.
        config: the data set's configuration; None for the one it has by default.
        revision: a commit of the repository. None is an error unless ``name`` is a local folder: a data set that may change under
            its name cannot be reproduced.
        train: what the data set calls split ``train``.
        dev: what it calls split ``dev``; None if there is none.
        test: what it calls split ``test``; None if there is none.
        text_column: the column of the text.
        label_column: the column of the label: texts, numbers, or classes, which are called by their names.
    """

    def __init__(
        self,
        *,
        name: str,
        config: str | None,
        revision: str | None,
        train: str,
        dev: str | None,
        test: str | None,
        text_column: str,
        label_column: str,
    ) -> None:
        check_pinned(name, revision, setting="task data.revision")
        self.name = name
        self.config = config
        self.revision = revision
        self.names = {split: given for split, given in {"train": train, "dev": dev, "test": test}.items() if given is not None}
        self.splits = tuple(self.names)
        self.text_column = text_column
        self.label_column = label_column

    def load(self, split: str) -> Sequence[Labelled]:
        table = open_dataset(self.name, self.config, split=self.names[split], revision=self.revision, setting="task data.name")
        classes = table.class_names(self.label_column)
        rows = (
            (where, field_of(record, self.text_column, where) or "", label_of(record, self.label_column, classes, where))
            for where, record in table
        )
        examples = _labelled(rows, table.place)
        if not examples:
            raise user_error("task data.name", f"{table.place} has no labelled example.")
        return examples


def label_of(record: Mapping[str, Any], column: str, classes: Sequence[str] | None, where: str) -> str:
    """Return the label that a record of the hub holds, "" if none.

    Args:
        record: the record.
        column: the column of the label.
        classes: the names of the classes whose numbers the column holds; None where it holds the label itself.
        where: the place of the record.

    Raises:
        UserError: if there is no such column, or it holds no label.
    """
    check_columns([column], list(record), where)
    value = record[column]
    if classes is not None and isinstance(value, int):
        return "" if value < 0 else classes[value]  # -1 where it is kept secret
    if isinstance(value, str | int) or value is None:
        return "" if value is None else str(value)
    raise user_error(where, f"column {column!r} holds a {type(value).__name__}; a text or an integer is needed.")


def _labelled(rows: Iterable[tuple[str, str, str]], source: str) -> list[Labelled]:
    """Return the examples of rows (place, text, label); those without text or label are left out and counted."""
    examples = []
    skipped: Counter[str] = Counter()
    for where, text, label in rows:
        if not text.strip() or not label.strip():
            skipped["no label" if text.strip() else "no text"] += 1
        else:
            examples.append(Labelled(where.rpartition(":")[2], where, text, label.strip()))
    for reason, number in skipped.items():
        log.warning("%s: %d lines skipped: %s", source, number, reason)
    return examples
