"""Datasets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmx.data.corpora.records import Record, RecordCorpus, field_of
from mlmx.errors import user_error

if TYPE_CHECKING:
    from datasets import IterableDataset


class HubCorpus(RecordCorpus):
    """A dataset of the Hugging Face hub, or a local folder that ``datasets`` can load; read as a stream.

    Args:
        name: the repository, or a local folder.
        config: the dataset's configuration; null where it has only one.
        split: such as ``train``.
        revision: a commit of the repository. Null is an error unless ``name`` is a local folder: a dataset that may change under
            its name cannot be reproduced.
        columns: the column with the text, the two of a pair, or the three of a triplet (a sentence, its positive, a hard negative);
            ``a.b`` is field ``b`` of the struct in column ``a``.
        languages: the code of the language of each column.
    """

    def __init__(
        self, *, name: str, config: str | None, split: str, revision: str | None, columns: list[str], languages: list[str]
    ) -> None:
        if len(columns) not in (1, 2, 3) or len(columns) != len(languages):
            message = f"{columns!r} and languages {languages!r}: name one column (or two, or three), and a language for each."
            raise user_error("corpus.columns", message)
        check_pinned(name, revision, setting="corpus.revision")
        super().__init__(source=name, side_languages=languages)
        self.name = name
        self.config = config
        self.split = split
        self.revision = revision
        self.columns = columns

    def records(self) -> Iterator[Record]:
        where = None
        for where, record in open_dataset(self.name, self.config, split=self.split, revision=self.revision, setting="corpus.name"):
            yield where, tuple(field_of(record, column, where) for column in self.columns)
        if where is None:
            raise user_error("corpus.split", f"{self.split!r} of {self.name} is empty.")


class HubSplit:
    """One split of a dataset of the hub, read as a stream: iterating gives where each record stands, and the record.

    Args:
        records: what ``datasets`` gives.
        place: the names of dataset, configuration and split.
        setting: the setting that names the dataset, for messages.
    """

    def __init__(self, records: IterableDataset, place: str, setting: str) -> None:
        self._records = records
        self.place = place
        self._setting = setting

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with _told(self.place, self._setting):
            for number, record in enumerate(self._records):
                yield f"{self.place}:{number}", record

    def class_names(self, column: str) -> Sequence[str] | None:
        """Return the names of the classes whose numbers a column holds, alone or in lists; None where it holds no classes."""
        feature = (self._records.features or {}).get(column)
        names: Sequence[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
        return names


def open_dataset(name: str, config: str | None, *, split: str, revision: str | None, setting: str) -> HubSplit:
    """Open one split of a dataset of the hub, or of a local folder that ``datasets`` can load.

    Args:
        name: the repository, or the folder.
        config: the dataset's configuration; None for the one it has by default.
        split: such as ``train``.
        revision: a commit of the repository; not looked at for a folder.
        setting: the setting that names the dataset, for messages.

    Raises:
        UserError: if it cannot be loaded, now or while it is read.
    """
    import datasets

    place = f"{name}[{'/'.join(filter(None, (config, split)))}]"
    with _told(place, setting):
        pinned = None if Path(name).exists() else revision
        return HubSplit(datasets.load_dataset(name, config, split=split, revision=pinned, streaming=True), place, setting)


@contextmanager
def _told(place: str, setting: str) -> Iterator[None]:
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (ValueError, OSError, RuntimeError, DatasetsError) as error:
        # `datasets` names what there is: configurations, splits, files; and that it runs no scripts.
        raise user_error(setting, f"{place} cannot be loaded: {error}") from error


def check_pinned(name: str, revision: str | None, *, setting: str) -> None:
    """Check that a dataset cannot change under its name.

    Args:
        name: a repository of the hub, or a local folder.
        revision: its commit.
        setting: the setting that names the commit.

    Raises:
        UserError: if it is a repository without a commit.
    """
    if revision is None and not Path(name).exists():
        raise user_error(setting, f"pin the commit of {name}, or name a local folder.")
