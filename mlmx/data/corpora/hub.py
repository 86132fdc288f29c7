"""Datasets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mlmx.data.corpora.records import Record, RecordCorpus, field_of
from mlmx.errors import user_error


class HubCorpus(RecordCorpus):
    """A dataset of the Hugging Face hub, or a local folder that ``datasets`` can load; read as a stream.

    Args:
        name: the repository, or a local folder.
        config: the dataset's configuration; null where it has only one.
        split: such as ``train``.
        revision: a commit of the repository. Null is an error unless ``name`` is a local folder: a dataset that may change under
            its name cannot be reproduced.
        columns: the column with the text, or the two columns of a pair; ``a.b`` is field ``b`` of the struct in column ``a``.
        languages: the code of the language of each column.
    """

    def __init__(
        self, *, name: str, config: str | None, split: str, revision: str | None, columns: list[str], languages: list[str]
    ) -> None:
        if len(columns) not in (1, 2) or len(columns) != len(languages):
            message = f"{columns!r} and languages {languages!r}: name one column (or the two of a pair), and a language for each."
            raise user_error("corpus.columns", message)
        if revision is None and not Path(name).exists():
            raise user_error("corpus.revision", f"pin the commit of {name}, or name a local folder.")
        self.name = name
        self.config = config
        self.split = split
        self.revision = revision
        self.columns = columns
        self.parallel = len(columns) == 2
        self.languages = tuple(languages)
        self.skipped = {}

    def records(self) -> Iterator[Record]:
        number = -1
        dataset = open_dataset(self.name, self.config, split=self.split, revision=self.revision, setting="corpus.name")
        for number, record in enumerate(dataset):
            where = f"{self.name}[{self.split}]:{number}"
            yield where, tuple(field_of(record, column, where) for column in self.columns)
        if number < 0:
            raise user_error("corpus.split", f"{self.split!r} of {self.name} is empty.")


def open_dataset(name: str, config: str | None, *, split: str, revision: str | None, setting: str) -> Iterable[dict[str, Any]]:
    """Return the records of one split of a dataset, read as a stream.

    Args:
        name: the repository, or a local folder that ``datasets`` can load.
        config: the dataset's configuration; None where it has only one.
        split: such as ``train``.
        revision: a commit of the repository; not looked at for a folder.
        setting: the setting that names the dataset, for messages.

    Raises:
        UserError: if it cannot be loaded.
    """
    import datasets

    pinned = None if Path(name).exists() else revision
    try:
        dataset: Iterable[dict[str, Any]] = datasets.load_dataset(name, config, split=split, revision=pinned, streaming=True)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        # `datasets` names what there is: configurations, splits, files.
        raise user_error(setting, f"{name} cannot be loaded: {error}") from error
    return dataset
