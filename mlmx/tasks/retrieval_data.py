"""What retrieval is judged on and trained with: documents, queries, and which documents answer a query."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlmx.build import NonNegative, Positive
from mlmx.data.corpora.hub import check_pinned, open_dataset
from mlmx.data.corpora.records import field_of, json_object
from mlmx.data.text_files import plain_or_compressed, read_lines
from mlmx.errors import Problem, UserError, first_problems, nearest, user_error
from mlmx.tasks.table_files import read_records

log = logging.getLogger(__name__)

Rows = Iterable[tuple[str, Mapping[str, Any]]]
"""Where a record stands, and its fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Documents and queries.

    Attributes:
        documents: their texts; of a document with a title, title and text.
        document_ids: a name for each document.
        queries: their texts.
        query_ids: a name for each query.
        judged: query id -> document id -> grade: 0 for not relevant; what is not judged is not relevant either.
        split: the name of this data, such as ``test``.
    """

    documents: Sequence[str]
    document_ids: Sequence[str]
    queries: Sequence[str]
    query_ids: Sequence[str]
    judged: Mapping[str, Mapping[str, int]]
    split: str


class RetrievalData(ABC):
    """A source of collections. Settings are keyword-only parameters of the constructor."""

    @abstractmethod
    def load(self, split: str) -> Collection:
        """Return the documents, and the queries of a split.

        Raises:
            UserError: if there is no such split.
        """


class MicroworldRetrieval(RetrievalData):
    """Documents of several sentences of the embedded microworld, with two queries to each.

    The splits ``train``, ``dev`` and ``test`` hold both queries; of ``test_shared`` and the like only those in the language of the
    documents, of ``test_unshared`` only those in the other language, which share no word with any document.

    Args:
        seed: of the world; that of the corpus, or its words mean something else.
        num_documents: of each split.
    """

    def __init__(self, *, seed: NonNegative, num_documents: Positive) -> None:
        self.seed = seed
        self.num_documents = num_documents

    def load(self, split: str) -> Collection:
        from mlmx.data.microworld import retrieval_collection

        events, _, kind = split.partition("_")
        valid = [f"{name}{ending}" for name in ("train", "dev", "test") for ending in ("", "_shared", "_unshared")]
        if split not in valid:
            raise user_error("task data", f"no split {split!r}; there are {', '.join(valid)}.", nearest(split, valid))
        documents, queries = retrieval_collection(seed=self.seed, split=events, num_documents=self.num_documents)
        chosen = {f"q{i}": query for i, query in enumerate(queries) if not kind or query.shared == (kind == "shared")}
        return Collection(
            documents=documents,
            document_ids=[f"d{i}" for i in range(len(documents))],
            queries=[query.text for query in chosen.values()],
            query_ids=list(chosen),
            judged={name: {f"d{query.document}": 1} for name, query in chosen.items()},
            split=split,
        )


class BeirData(RetrievalData):
    """Data in BEIR's layout.

    Documents have ``_id``, ``title`` and ``text``, queries ``_id`` and ``text``, and the judgements of a split ``query-id``,
    ``corpus-id`` and ``score``. The queries of a split are those that it judges.
    """

    @abstractmethod
    def document_rows(self) -> Rows:
        """Yield the documents."""

    @abstractmethod
    def query_rows(self) -> Rows:
        """Yield the queries of all splits."""

    @abstractmethod
    def judgement_rows(self, split: str) -> Rows:
        """Yield the judgements of a split."""

    def load(self, split: str) -> Collection:
        documents, queries = self._documents, self._queries
        judged = _judgements(self.judgement_rows(split), documents, queries)
        _check_relevance(judged, split)
        return Collection(
            documents=list(documents.values()),
            document_ids=list(documents),
            queries=[queries[query] for query in judged],
            query_ids=list(judged),
            judged=judged,
            split=split,
        )

    @cached_property
    def _documents(self) -> dict[str, str]:
        documents = _texts(self.document_rows(), titled=True)
        if empty := sum(not text for text in documents.values()):
            log.warning("%d of %d documents have neither title nor text", empty, len(documents))
        return documents

    @cached_property
    def _queries(self) -> dict[str, str]:
        queries = _texts(self.query_rows(), titled=False)
        if empty := sum(not text for text in queries.values()):
            log.warning("%d of %d queries have no text", empty, len(queries))
        return queries


class RetrievalFiles(BeirData):
    """A folder in BEIR's layout: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``, compressed or not.

    Args:
        folder: where they lie.
    """

    def __init__(self, *, folder: Path) -> None:
        self.folder = folder

    def document_rows(self) -> Rows:
        return _jsonl(self._file("corpus.jsonl"))

    def query_rows(self) -> Rows:
        return _jsonl(self._file("queries.jsonl"))

    def judgement_rows(self, split: str) -> Rows:
        return read_records(self._file(f"qrels/{split}.tsv"), ["query-id", "corpus-id", "score"])

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if (found := plain_or_compressed(path)) is not None:
            return found
        there = sorted(file.name for file in path.parent.iterdir() if file.is_file()) if path.parent.is_dir() else []
        raise user_error(str(path), f"there is no such file; there are {', '.join(there) or 'none'}.", nearest(path.name, there))


class HubTable:
    """One table of a data set of the Hugging Face hub, or of a local folder that ``datasets`` can load.

    Args:
        name: the repository, or a local folder.
        config: the data set's configuration; None for the one it has by default.
        split: the split that holds the table; None where it is the split that is asked for.
        revision: a commit of the repository. None is an error unless ``name`` is a local folder: a data set that may change under
            its name cannot be reproduced.
    """

    def __init__(self, *, name: str, config: str | None, split: str | None, revision: str | None) -> None:
        check_pinned(name, revision, setting="task data.revision")
        self.name = name
        self.config = config
        self.split = split
        self.revision = revision

    def rows(self, split: str | None = None) -> Rows:
        """Return the records of the table, or of one of its splits."""
        chosen = self.split or split
        assert chosen is not None, "a table of several splits is read split by split"
        return open_dataset(self.name, self.config, split=chosen, revision=self.revision, setting="task data")


class RetrievalHub(BeirData):
    """Tables of the Hugging Face hub in BEIR's layout, such as those of ``mteb/scifact``, or ``BeIR/scifact`` and its qrels.

    Args:
        corpus: the documents.
        queries: the queries.
        qrels: the judgements, a split for each of the task's.
    """

    def __init__(self, *, corpus: HubTable, queries: HubTable, qrels: HubTable) -> None:
        self.tables = {"corpus": corpus, "queries": queries, "qrels": qrels}

    def document_rows(self) -> Rows:
        return self.tables["corpus"].rows()

    def query_rows(self) -> Rows:
        return self.tables["queries"].rows()

    def judgement_rows(self, split: str) -> Rows:
        return self.tables["qrels"].rows(split)


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((where, json_object(where, line)) for where, line in read_lines(path) if line.strip())


def _texts(rows: Rows, *, titled: bool) -> dict[str, str]:
    # Id -> text, in the order of the rows.
    texts: dict[str, str] = {}
    for where, record in rows:
        name = _id_of(record, "_id", where)
        if name in texts:
            raise user_error(where, f"the id {name!r} occurs a second time.")
        text = field_of(record, "text", where) or ""
        title = field_of(record, "title", where) or "" if titled and "title" in record else ""
        texts[name] = f"{title} {text}".strip()
    return texts


def _id_of(record: Mapping[str, Any], column: str, where: str) -> str:
    # Tables of the hub may hold numbers.
    value = record.get(column)
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else field_of(record, column, where)
    if not name or name.split() != [name]:
        raise user_error(where, f"{column} is {name!r}; an id without white space is needed, as run files hold it.")
    return name


def _judgements(rows: Rows, documents: Mapping[str, str], queries: Mapping[str, str]) -> dict[str, dict[str, int]]:
    judged: dict[str, dict[str, int]] = {}
    problems: list[Problem] = []
    for where, record in rows:
        query, document = _id_of(record, "query-id", where), _id_of(record, "corpus-id", where)
        grade = _grade(record, where)
        for name, known, what in ((query, queries, "query"), (document, documents, "document")):
            if name not in known:
                problems.append(Problem(where, f"there is no {what} {name!r}."))
        if judged.setdefault(query, {}).setdefault(document, grade) != grade:
            problems.append(Problem(where, f"document {document!r} has another score for query {query!r} in a line before."))
    if problems:
        raise UserError(first_problems(problems))
    return judged


def _check_relevance(judged: Mapping[str, Mapping[str, int]], split: str) -> None:
    if not judged:
        raise user_error("task data", f"split {split!r} has no judgements.")
    irrelevant = sum(all(grade <= 0 for grade in grades.values()) for grades in judged.values())
    if irrelevant == len(judged):
        raise user_error("task data", f"no query of split {split!r} has a relevant document.")
    if irrelevant:
        log.warning("%d of %d queries of split %s have no relevant document", irrelevant, len(judged), split)


def _grade(record: Mapping[str, Any], where: str) -> int:
    try:
        return int(str(record["score"]))
    except (KeyError, ValueError) as error:
        raise user_error(where, f"score is {record.get('score')!r}; an integer is needed.") from error
