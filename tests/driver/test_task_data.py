"""What tasks are judged by is read before anything is trained."""

import pytest

from mlmx.driver import chain, execute
from mlmx.driver.directories import place
from mlmx.driver.stages import stages_of
from mlmx.driver.task_data import check_task_data
from mlmx.errors import UserError, user_error
from mlmx.inputs import told_in_task
from tests.driver.configs import frozen

RETRIEVAL = {
    "_target_": "mlmx.tasks.retrieval.Retrieval",
    "_version_": 1,
    "name": "search",
    "data": {"_target_": "mlmx.tasks.retrieval_data.RetrievalFiles", "_version_": 1, "_inputs_": ["folder"]},
    "splits": ["test"],
    "layer": "last",
    "width": None,
    "pooling": "mean",
    "similarity": "cosine",
    "query_prefix": "",
    "document_prefix": "",
    "ignore_identical_ids": False,
    "bm25": None,
    "controls": [],
    "lexical": None,
    "max_length": None,
    "batch_tokens": 64,
}


def config(tmp_path, judgement, **changes):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "title": "", "text": "one"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "one"}\n')
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judgement}\n")
    node = {**RETRIEVAL, "data": {**RETRIEVAL["data"], "folder": str(folder)}}
    return frozen(tmp_path / "outputs", task={"search": node}, **changes)


@pytest.mark.parametrize(
    ("judgement", "message"),
    [
        ("q1\td9\t1", r"test\.tsv:2: there is no document 'd9'"),
        ("q1\td1\t0", r"^task\.search\.data: no query of split 'test' has a relevant document"),
    ],
)
def test_mistakes_are_told_before_anything_starts(tmp_path, monkeypatch, judgement, message):
    monkeypatch.setattr(execute, "check", lambda placed, config, fresh: None)  # The other components are made up.
    with pytest.raises(UserError, match=message):
        chain.run(config(tmp_path, judgement), run_dir=tmp_path / "run", overrides=[])
    assert not (tmp_path / "outputs" / "stages").exists()


@pytest.mark.parametrize(("trained", "said"), [(["pretrain"], "reads the data of search\n"), ([], "")])
def test_only_a_training_that_would_be_wasted_makes_it_worth_it(tmp_path, capsys, trained, said):
    check_task_data(place(stages_of(config(tmp_path, "q1\td1\t1", chain=trained)), tmp_path / "outputs"))
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("task data.folder", "task.search.data.folder"),
        ("task data.revision", "task.search.data.revision"),  # several have one
        ("task data", "task.search.data"),
        ("corpus.path[1]", "task.search.data.corpus.path"),
        ("task.search.splits", "task.search.splits"),
        ("/data/folder.tsv:2", "/data/folder.tsv:2"),
        ("mteb/x[test]:7", "mteb/x[test]:7"),
    ],
)
def test_settings_are_told_by_their_place_in_the_task(where, told):
    data = {"folder": "x", "queries": {"revision": None}, "qrels": {"revision": None}, "corpus": {"path": ["a", "b"]}}
    with pytest.raises(UserError) as raised, told_in_task({"name": "search", "splits": ["test"], "data": data}):
        raise user_error(where, "wrong.")
    assert raised.value.problems[0].where == told
