from __future__ import annotations

import json
import math

import numpy as np
import pytest
import pytrec_eval
import torch

from mlmx.build import build
from mlmx.data.batch import BatchContext
from mlmx.errors import UserError
from mlmx.models.inference import results_saved
from mlmx.models.load import untrained
from mlmx.models.sentence import SentenceModel
from mlmx.tasks import retrieval
from mlmx.tasks.bi_encoder import TERM
from mlmx.tasks.bm25 import BM25
from mlmx.tasks.retrieval import Retrieval
from mlmx.tasks.retrieval_data import Collection, RetrievalData
from mlmx.tasks.retrieval_scores import METRICS, query_scores, random_neighbours, rankings, write_run
from mlmx.tasks.retrieval_tuned import TunedRetrieval
from mlmx.tasks.search import Neighbours

BM25_NODE = {"_target_": "mlmx.tasks.bm25.BM25", "k1": 0.9, "b": 0.4, "stopwords": None, "stemmer": None}
SETTINGS = {
    "_target_": "mlmx.tasks.retrieval.Retrieval",
    "name": "retrieval",
    "data": {"_target_": "mlmx.tasks.retrieval_data.MicroworldRetrieval", "seed": 0, "num_documents": 20},
    "splits": ["test"],
    "layer": "last",
    "width": None,
    "pooling": "mean",
    "similarity": "cosine",
    "lexical": None,
    "query_prefix": "",
    "document_prefix": "",
    "ignore_identical_ids": False,
    "bm25": BM25_NODE,
    "controls": [],
    "max_length": 32,
    "batch_tokens": 64,
}
TUNED = {
    "_target_": "mlmx.tasks.retrieval_tuned.TunedRetrieval",
    "train_split": "train",
    "temperature": 0.05,
    "negatives": None,
    "num_negatives": 0,
    "skipped_negatives": 0,
    "chunk_tokens": None,
}
WORDS = [f"w{i}" for i in range(40)]


class Given(RetrievalData):
    """Twelve documents of three words; of queries, six share a word with their document and none with another one's."""

    def __init__(self) -> None:
        self.loaded = 0

    def load(self, split: str) -> Collection:
        self.loaded += 1
        return Collection(
            documents=[f"w{i} w{i + 12} w{24 + i % 4}" for i in range(12)],
            document_ids=[f"d{i}" for i in range(12)],
            queries=[f"w{i} w30" for i in range(6)],
            query_ids=[f"d{i}" for i in range(6)],
            judged={f"d{i}": {f"d{i}": 1, f"d{i + 1}": 0} for i in range(6)},
            split=split,
        )


def task(**settings) -> Retrieval:
    built = build({**SETTINGS, **settings}, where="task.retrieval")
    built.data = Given()
    return built


def tuned(**settings) -> TunedRetrieval:
    node = {key: value for key, value in {**SETTINGS, **TUNED, **settings}.items() if key not in ("layer", "width", "lexical")}
    built = build(node, where="task.retrieval")
    built.data = Given()
    return built


def values(evaluation) -> dict[str, float]:
    return {score.metric: score.value for score in evaluation.scores}


def random_rankings(num_queries: int, num_documents: int, seed: int) -> tuple[dict, dict]:
    random = np.random.default_rng(seed)
    judged, ranked = {}, {}
    for query in range(num_queries):
        documents = random.permutation(num_documents)
        grades = random.integers(0, 4, 30)
        judged[f"q{query}"] = {f"d{d}": int(grade) for d, grade in zip(documents[:30].tolist(), grades, strict=True)}
        found = random.permutation(num_documents)[: random.integers(1, num_documents)]
        scores = np.sort(random.integers(0, 200, len(found)))[::-1]  # with ties
        ranked[f"q{query}"] = {f"d{d}": float(score) for d, score in zip(found.tolist(), scores, strict=True)}
    return judged, ranked


def test_metrics_are_those_of_trec_eval():
    judged, ranked = random_rankings(40, 1200, 0)
    ours = query_scores(judged, ranked)
    theirs = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut_10", "recall_100", "recall_1000", "map"}).evaluate(ranked)
    names = {"ndcg_at_10": "ndcg_cut_10", "recall_at_100": "recall_100", "recall_at_1000": "recall_1000", "map": "map"}
    for query, expected in theirs.items():
        for metric, name in names.items():
            assert ours[query][metric] == pytest.approx(expected[name], abs=1e-6)
        # MS MARCO's script, whose MRR it is, puts the document with the smaller name first where scores are equal.
        order = sorted(ranked[query], key=lambda document: (-ranked[query][document], document))
        ranks = [rank for rank, document in enumerate(order[:10], 1) if judged[query].get(document, 0) > 0]
        assert ours[query]["mrr_at_10"] == pytest.approx(1 / ranks[0] if ranks else 0, abs=1e-6)


def test_metrics_by_hand():
    judged = {"a": {"x": 2, "y": 1, "z": 0}, "b": {"x": 1}, "c": {"x": 1}}
    ranked = {"a": {"z": 3.0, "y": 2.0, "x": 1.0}, "b": {"y": 1.0}, "c": {}}
    found = query_scores(judged, ranked)
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert found["a"] == pytest.approx(
        {
            "ndcg_at_10": (1 / math.log2(3) + 2 / math.log2(4)) / ideal,
            "mrr_at_10": 1 / 2,
            "recall_at_100": 1,
            "recall_at_1000": 1,
            "map": (1 / 2 + 2 / 3) / 2,
        }
    )
    # What is not found, and who finds nothing, has 0, and counts.
    assert found["b"] == found["c"] == dict.fromkeys(METRICS, 0.0)


def test_rankings_leave_out_the_same_name_and_what_scores_nothing():
    collection = Given().load("test")
    found = Neighbours(np.array([[0, 3, 2, 1]] * 6), np.array([[9.0, 5.0, 2.0, 0.0]] * 6, np.float32))
    ranked = rankings(collection, found, ignore_identical_ids=True, least_score=0.0)
    assert ranked["d0"] == {"d3": 5.0, "d2": 2.0}
    assert ranked["d1"] == {"d0": 9.0, "d3": 5.0, "d2": 2.0}
    assert len(rankings(collection, found, ignore_identical_ids=False, least_score=None)["d0"]) == 4


def test_run_files_are_read_by_trec_tools(tmp_path):
    _, ranked = random_rankings(5, 50, 1)
    write_run(tmp_path / "run.trec", ranked, "mlmx")
    with (tmp_path / "run.trec").open() as file:
        assert pytrec_eval.parse_run(file) == ranked
    first = (tmp_path / "run.trec").read_text().splitlines()[0].split()
    best = next(iter(ranked["q0"]))
    assert first == ["q0", "Q0", best, "1", f"{ranked['q0'][best]:.9g}", "mlmx"]


def test_bm25_by_hand():
    # Lucene: idf ln(1 + (N - n + 0.5) / (n + 0.5)), times tf / (tf + k1 (1 - b + b length / mean length)).
    bm25 = BM25(k1=1.2, b=0.75, stopwords=None, stemmer=None)
    found = bm25.search(["Apple, apple!", "pear", "..."], ["apple apple plum", "plum", "fig apple"], 3)
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))

    def weight(count: int, length: int) -> float:
        return idf * count / (count + 1.2 * (1 - 0.75 + 0.75 * length / 2))

    assert found.indices[0, :2].tolist() == [0, 2]
    np.testing.assert_allclose(found.scores[0], [2 * weight(2, 3), 2 * weight(1, 2), 0], rtol=1e-5)
    assert not found.scores[1:].any()


def test_bm25_counts_words_with_vowel_signs_whole():
    words = BM25(k1=0.9, b=0.4, stopwords=None, stemmer=None).words("ශ්‍රී ලංකා, हिन्दी!")
    assert words == ["ශ්‍රී", "ලංකා", "हिन्दी"]


def test_bm25_leaves_out_stopwords_and_stems():
    pytest.importorskip("Stemmer")
    assert BM25(k1=0.9, b=0.4, stopwords="english", stemmer="english").words("The running of a dog") == ["run", "dog"]
    with pytest.raises(UserError, match="Did you mean 'english'"):
        BM25(k1=0.9, b=0.4, stopwords="englsh", stemmer=None)
    with pytest.raises(UserError, match="Did you mean 'english'"):
        BM25(k1=0.9, b=0.4, stopwords=None, stemmer="englsh")


def test_evaluation_beside_bm25(make_encoder):
    evaluation = task(splits=["dev", "test"]).evaluate(make_encoder(WORDS))
    found = values(evaluation)
    assert set(found) == {*METRICS, *(f"bm25_{metric}" for metric in METRICS)}
    assert found["bm25_ndcg_at_10"] == found["bm25_map"] == 1
    assert found["recall_at_100"] == 1 > found["mrr_at_10"]
    assert {score.num_examples for score in evaluation.scores} == {6}
    assert [(record["split"], record["id"]) for record in evaluation.predictions][:7:6] == [("dev", "d0"), ("test", "d0")]
    for score in evaluation.scores:
        of_split = [record["metrics"][score.metric] for record in evaluation.predictions if record["split"] == score.split]
        assert score.value == pytest.approx(np.mean(of_split))
    json.dumps(evaluation.predictions)


def test_chance_is_told_beside_every_score(make_encoder):
    found = random_neighbours(400, 5000)
    assert [len(set(documents)) for documents in found.indices.tolist()] == [1001] * 400
    assert (np.diff(found.scores) < 0).all()
    judged = {f"q{i}": {f"d{i}": 1} for i in range(400)}
    ranked = {f"q{i}": {f"d{d}": -rank for rank, d in enumerate(of)} for i, of in enumerate(found.indices.tolist())}
    # A thousand of five thousand: one in five, within three standard deviations.
    recall = np.mean([value["recall_at_1000"] for value in query_scores(judged, ranked).values()])
    assert recall == pytest.approx(0.2, abs=3 * math.sqrt(0.2 * 0.8 / 400))
    trivial = {score.metric: score.trivial for score in task().evaluate(make_encoder(WORDS)).scores}
    assert trivial["recall_at_100"] == 1  # of twelve documents
    assert 0 < trivial["mrr_at_10"] == trivial["bm25_mrr_at_10"] < 0.6


def test_without_bm25_there_is_none(make_encoder):
    assert set(values(task(bm25=None).evaluate(make_encoder(WORDS)))) == set(METRICS)


def test_controls_are_judged_as_if_alone(make_encoder, tmp_path):
    encoder = make_encoder(WORDS)
    with torch.no_grad():
        encoder.base.embeddings.word_embeddings.weight.normal_()
    published = untrained(encoder)
    with torch.no_grad():
        published.base.embeddings.word_embeddings.weight.zero_()
    judge = task(bm25=None, controls=["untrained", "before_pretraining"])
    assert {metric.removeprefix("untrained_") for metric in values(judge.evaluate(encoder))} == set(METRICS)
    judge.before_pretraining = lambda: published
    alone = {
        "": encoder,
        "untrained_": untrained(encoder),
        "before_pretraining_": published,
    }
    expected = {
        f"{prefix}{metric}": value
        for prefix, one in alone.items()
        for metric, value in values(task(bm25=None).evaluate(one)).items()
    }
    assert len({expected[f"{prefix}mrr_at_10"] for prefix in alone}) == 3

    # What is written down of one encoder is not taken for another's.
    def interrupted():
        with results_saved(tmp_path / "results", "x"):
            assert values(judge.evaluate(encoder)) == expected
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with results_saved(tmp_path / "results", "x"):
        assert values(judge.evaluate(encoder)) == expected


def test_texts_become_vectors_as_with_the_encoder_that_is_judged(make_encoder):
    encoder = make_encoder(WORDS)
    published = untrained(encoder)
    published.sentence = SentenceModel(pooling="lasttoken", normalize=True, max_length=4, other_modules=("Dense",))
    judge = task(bm25=None, pooling=None, controls=["before_pretraining"])
    judge.before_pretraining = lambda: published
    found = values(judge.evaluate(encoder))
    alone = values(task(bm25=None).evaluate(untrained(encoder)))
    assert {metric: found[f"before_pretraining_{metric}"] for metric in METRICS} == alone


def test_an_untrained_encoder_is_always_the_same_and_has_seen_nothing(make_encoder):
    encoder = make_encoder(WORDS)
    state = torch.get_rng_state()
    first, second = untrained(encoder), untrained(encoder)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [dict(one.base.named_parameters()) for one in (encoder, first, second)]
    assert weights[0].keys() <= weights[1].keys()  # which may have a pooler too
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[1])
    drawn = [name for name, weight in weights[0].items() if weight.dim() == 2]
    assert not any(torch.equal(weights[0][name], weights[1][name]) for name in drawn)


def test_identical_names_are_left_out(make_encoder):
    # Here the relevant document is called as the query is.
    assert not any(values(task(ignore_identical_ids=True).evaluate(make_encoder(WORDS))).values())


def test_an_index_is_written_once_and_used_again(make_encoder, tmp_path, monkeypatch):
    encoder = make_encoder(WORDS)
    judge = task(splits=["dev", "test"])
    expected = judge.evaluate(encoder)
    judge.folder = tmp_path
    assert judge.evaluate(encoder) == expected
    (index,) = (tmp_path / "index").iterdir()
    assert np.load(index).shape == (12, 32)
    assert {path.name for path in tmp_path.glob("*.trec")} == {
        "run.dev.trec", "run.test.trec", "bm25.dev.trec", "bm25.test.trec"
    }  # fmt: skip
    with (tmp_path / "run.test.trec").open() as file:
        run = pytrec_eval.parse_run(file)
    assert {query: len(ranking) for query, ranking in run.items()} == {f"d{i}": 12 for i in range(6)}

    encoded = []
    embeddings = Retrieval._embeddings
    monkeypatch.setattr(Retrieval, "_embeddings", lambda self, *args: encoded.append(args[2]) or embeddings(self, *args))
    assert judge.evaluate(encoder) == expected
    assert set(encoded) == {"queries"}
    # Whatever the embeddings depend on gives them another name.
    with torch.no_grad():
        encoder.base.embeddings.word_embeddings.weight[7] += 1
    judge.evaluate(encoder)
    task_with_prefix = task(document_prefix="w3 ")
    task_with_prefix.folder = tmp_path
    task_with_prefix.evaluate(encoder)
    assert len(list((tmp_path / "index").iterdir())) == 3


def test_documents_are_encoded_in_parts(make_encoder, tmp_path, monkeypatch):
    encoder, judge = make_encoder(WORDS), task()
    expected = judge.evaluate(encoder)
    monkeypatch.setattr(retrieval, "_CHUNK_DOCUMENTS", 5)
    judge.folder = tmp_path
    assert values(judge.evaluate(encoder)) == pytest.approx(values(expected))


@pytest.mark.parametrize("settings", [{"query_prefix": "w35 w36 "}, {"similarity": "dot"}, {"pooling": "cls"}, {"layer": 0}])
def test_settings_change_the_embeddings(make_encoder, settings):
    encoder = make_encoder(WORDS)
    collection = Given().load("test")
    found, other = (one._search(encoder, collection, 12).scores for one in (task(), task(**settings)))
    assert not np.allclose(found, other)


@pytest.mark.parametrize("negatives", [{}, {"negatives": "bm25", "num_negatives": 2}, {"negatives": "model", "num_negatives": 1}])
def test_fine_tuning_learns_and_is_judged(make_encoder, negatives):
    judge, encoder = tuned(**negatives), make_encoder(WORDS)
    before = values(judge.evaluate(encoder))
    objective, rows = judge.objective(encoder), judge.training_rows(encoder)
    everything = np.arange(len(rows))
    batch = objective.collator()(rows.take(everything), BatchContext(keys=everything))
    assert batch.counts == {TERM: 6}
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        output = objective(batch)
        (output.terms[TERM] / batch.counts[TERM]).backward()
        optimizer.step()
    assert [name for name, parameter in objective.named_parameters() if parameter.grad is None] == []
    assert [int(number) for number in output.metrics["accuracy"]] == [6, 6]
    after = values(judge.evaluate(objective))
    assert after["mrr_at_10"] > max(0.9, before["mrr_at_10"])


def test_hard_negatives_are_the_best_that_are_not_relevant(make_encoder):
    encoder = make_encoder(WORDS)
    collection = Given().load("train")
    for settings in ({"negatives": "bm25"}, {"negatives": "model", "skipped_negatives": 1}):
        judge = tuned(num_negatives=2, **settings)
        if judge.negatives == "bm25":
            ranked = judge.bm25.search(collection.queries, collection.documents, 12).indices.tolist()
        else:
            ranked = judge._search(encoder, collection, 12).indices.tolist()
        skipped = judge.skipped_negatives
        expected = [[d for d in ranked[q] if d != q][skipped : skipped + 2] for q in range(6)]
        taken = judge.training_rows(encoder).take(np.arange(6))
        texts = encoder.tokenizer.batch_decode(np.split(taken.input_ids, taken.cu_seqlens[1:-1]), skip_special_tokens=True)
        assert [texts[4 * q + 2 : 4 * q + 4] for q in range(6)] == [[collection.documents[d] for d in of] for of in expected]


def test_training_rows_are_queries_with_prefixes_and_their_documents(make_encoder):
    encoder = make_encoder(WORDS)
    rows = tuned(query_prefix="w38 ", document_prefix="w39 ").training_rows(encoder)
    assert len(rows) == 6
    taken = rows.take(np.array([4, 0]))
    texts = encoder.tokenizer.batch_decode(np.split(taken.input_ids, taken.cu_seqlens[1:-1]), skip_special_tokens=True)
    assert texts == ["w38 w4 w30", "w39 w4 w16 w24", "w38 w0 w30", "w39 w0 w12 w24"]
    assert taken.labels.tolist() == [[10], [6]]
    assert rows.lengths[[4, 0]].tolist() == [len(taken.input_ids) // 2] * 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"negatives": "bm25"}, "task.retrieval.num_negatives: set negatives and a num_negatives above 0"),
        ({"num_negatives": 2}, "task.retrieval.num_negatives: set negatives and a num_negatives above 0"),
        ({"skipped_negatives": 2}, "task.retrieval.skipped_negatives: has no effect without negatives"),
        ({"negatives": "bm25", "num_negatives": 2, "bm25": None}, "task.retrieval.bm25: is null, and negatives=bm25 needs it"),
    ],
)
def test_settings_that_contradict_each_other(settings, told):
    with pytest.raises(UserError, match=told):
        tuned(**settings)


def test_more_negatives_than_there_are_documents(make_encoder):
    with pytest.raises(UserError, match="12 hard negatives cannot be found among 12 documents"):
        tuned(negatives="model", num_negatives=12).training_rows(make_encoder(WORDS))
