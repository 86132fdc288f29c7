from __future__ import annotations

import gzip
import json
import logging
import re

import pytest

from mlmx.errors import UserError
from mlmx.tasks.retrieval_data import HubTable, MicroworldRetrieval, RetrievalFiles, RetrievalHub

DOCUMENTS = [
    {"_id": "d1", "title": "Cats", "text": "they purr"},
    {"_id": "d2", "title": "", "text": "dogs bark"},
    {"_id": "d3", "title": "Empty"},
]
DOCUMENTS[2]["text"] = ""
QUERIES = [{"_id": "q1", "text": "who purrs"}, {"_id": "q2", "text": "who barks"}, {"_id": "q3", "text": "unasked"}]
JUDGEMENTS = "query-id\tcorpus-id\tscore\nq2\td2\t2\nq1\td1\t1\nq1\td3\t0\n"
README = """---
configs:
- {config_name: corpus, data_files: [{split: corpus, path: corpus.jsonl}]}
- {config_name: queries, data_files: [{split: queries, path: queries.jsonl}]}
---
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qrels").mkdir()
    for name, records in (("corpus", DOCUMENTS), ("queries", QUERIES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "qrels" / "test.tsv").write_text(JUDGEMENTS)
    return tmp_path


def check(collection) -> None:
    assert dict(zip(collection.document_ids, collection.documents, strict=True)) == {
        "d1": "Cats they purr",
        "d2": "dogs bark",
        "d3": "Empty",
    }
    # The queries that the split judges, in its order.
    assert list(zip(collection.query_ids, collection.queries, strict=True)) == [("q2", "who barks"), ("q1", "who purrs")]
    assert collection.judged == {"q2": {"d2": 2}, "q1": {"d1": 1, "d3": 0}}
    assert collection.split == "test"


def test_a_folder_is_read(folder):
    check(RetrievalFiles(folder=folder).load("test"))


def test_compressed_files_are_read(folder):
    for name in ("corpus.jsonl", "qrels/test.tsv"):
        with gzip.open(folder / f"{name}.gz", "wb") as file:
            file.write((folder / name).read_bytes())
        (folder / name).unlink()
    check(RetrievalFiles(folder=folder).load("test"))


def test_tables_of_the_hub_are_read(folder, tmp_path_factory, monkeypatch):
    # As BEIR has them there: documents and queries in one repository, judgements in another.
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    qrels = (folder / "qrels").rename(tmp_path_factory.mktemp("hub") / "qrels")
    (folder / "README.md").write_text(README)
    corpus, queries = (HubTable(name=str(folder), config=name, split=name, revision=None) for name in ("corpus", "queries"))
    data = RetrievalHub(corpus=corpus, queries=queries, qrels=HubTable(name=str(qrels), config=None, split=None, revision=None))
    check(data.load("test"))
    with pytest.raises(UserError, match=r"task data: .*qrels\[dev\] cannot be loaded: .*dev"):
        data.load("dev")


def test_numbers_as_ids_are_names(folder):
    # As `datasets` reads the judgements of data sets whose ids are numbers.
    class Numbered(RetrievalFiles):
        def document_rows(self):
            return [("corpus:0", {"_id": 7, "title": None, "text": "seven"})]

        def query_rows(self):
            return [("queries:0", {"_id": "1", "text": "what"})]

        def judgement_rows(self, split):
            return [("qrels:0", {"query-id": 1, "corpus-id": 7, "score": 1})]

    collection = Numbered(folder=folder).load("test")
    assert (collection.document_ids, collection.documents, collection.judged) == (["7"], ["seven"], {"1": {"7": 1}})


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("qrels/test.tsv", "{}q9\td1\t1\n", "test.tsv:5: there is no query 'q9'."),
        ("qrels/test.tsv", "{}q1\td9\t1\n", "test.tsv:5: there is no document 'd9'."),
        ("qrels/test.tsv", "{}q1\td1\n", "test.tsv:5: 2 fields, but "),
        ("qrels/test.tsv", "{}q1\td2\t0.5\n", "test.tsv:5: score is '0.5'; an integer is needed."),
        ("qrels/test.tsv", "{}q1\td1\t0\n", "test.tsv:5: document 'd1' has another score for query 'q1' in a line before."),
        ("qrels/test.tsv", "q1\td1\t1\nq2\td2\t1\n", "test.tsv:1: no column 'query-id'"),
        ("corpus.jsonl", '{}{{"_id": "d2", "title": "", "text": "again"}}\n', "corpus.jsonl:4: the id 'd2' occurs a second time."),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "task data: split 'test' has no judgements."),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq1\td1\t0\n",
            "no query of split 'test' has a relevant document",
        ),
        ("corpus.jsonl", '{}{{"_id": true, "text": ""}}\n', "corpus.jsonl:4: column '_id' holds a bool, not a text."),
        ("corpus.jsonl", '{}{{"_id": "d 4", "text": ""}}\n', "corpus.jsonl:4: _id is 'd 4'; an id without white space is needed"),
        ("corpus.jsonl", '{}{{"_id": "d4"}}\n', "corpus.jsonl:4: there is no column 'text'; there are: '_id'."),
        ("corpus.jsonl", "{}not JSON\n", "corpus.jsonl:4: is not JSON"),
        ("queries.jsonl", '{}{{"_id": "q1", "text": "again"}}\n', "queries.jsonl:4: the id 'q1' occurs a second time."),
    ],
)
def test_mistakes_are_told_with_file_and_line(folder, name, content, told):
    path = folder / name
    path.write_text(content.format(path.read_text()))
    with pytest.raises(UserError, match=re.escape(told)):
        RetrievalFiles(folder=folder).load("test")


def test_all_mistakes_of_the_judgements_are_told_at_once(folder):
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.writelines(f"q{i}\td{i}\t1\n" for i in range(10, 20))
    with pytest.raises(UserError) as raised:
        RetrievalFiles(folder=folder).load("test")
    assert len(raised.value.problems) == 6
    assert "20 mistakes in all" in str(raised.value)


def test_missing_files_are_told_with_those_there_are(folder):
    with pytest.raises(UserError, match=r"qrels/tets\.tsv: there is no such file; there are test\.tsv\. Did you mean 'test\.tsv'"):
        RetrievalFiles(folder=folder).load("tets")


def test_empty_texts_and_queries_without_answer_are_counted(folder, caplog):
    for name, line in (
        ("corpus.jsonl", '{"_id": "d4", "title": "", "text": " "}\n'),
        ("queries.jsonl", '{"_id": "q4", "text": ""}\n'),
        ("qrels/test.tsv", "q3\td1\t0\n"),
    ):
        with (folder / name).open("a") as file:
            file.write(line)
    with caplog.at_level(logging.WARNING):
        RetrievalFiles(folder=folder).load("test")
    assert "1 of 4 documents have neither title nor text" in caplog.text
    assert "1 of 4 queries have no text" in caplog.text
    assert "1 of 3 queries of split test have no relevant document" in caplog.text


def test_a_table_of_the_hub_needs_its_commit():
    with pytest.raises(UserError, match="pin the commit of mteb/scifact, or name a local folder"):
        HubTable(name="mteb/scifact", config=None, split=None, revision=None)


def test_microworld_splits():
    data = MicroworldRetrieval(seed=0, num_documents=20)
    both, shared, unshared = (data.load(split) for split in ("test", "test_shared", "test_unshared"))
    assert both.documents == shared.documents == unshared.documents
    assert sorted([*shared.query_ids, *unshared.query_ids]) == sorted(both.query_ids)
    assert [len(one.queries) for one in (both, shared, unshared)] == [40, 20, 20]
    assert not set(both.documents) & set(data.load("train").documents)
    with pytest.raises(UserError, match="Did you mean 'test_shared'"):
        data.load("test_share")
