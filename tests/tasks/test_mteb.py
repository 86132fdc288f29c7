"""Tasks of MTEB, on data made here; skipped where mteb is not installed."""

import sys

import numpy as np
import pytest
from scipy.stats import spearmanr

from mlmx.errors import UserError
from mlmx.models.load import load_encoder
from mlmx.tasks.mteb import Mteb
from tests.tiny import numbered_tokenizer, scratch_encoder

pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS = {
    "name": "mteb",
    "languages": None,
    "layer": "last",
    "width": None,
    "pooling": "mean",
    "similarity": "cosine",
    "prefix": None,
    "query_prefix": "w9 ",
    "document_prefix": None,
    "max_length": 16,
    "batch_tokens": 64,
}
TEXTS = [" ".join(f"w{(i * j) % 20}" for j in range(1, 6)) for i in range(12)]
GOLD = [float(i % 5) for i in range(12)]


@pytest.fixture
def local(monkeypatch):
    """Three tasks that mteb knows, whose data are in memory."""
    pytest.importorskip("mteb")
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskBitextMining, AbsTaskRetrieval, AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    def task(base, kind, main_score, data, languages=("eng-Latn",)):
        class Local(base):
            metadata = TaskMetadata(
                dataset={"path": "in/memory", "revision": "r1"},
                name=f"Local{kind}",
                description="Made in a test.",
                type=kind,
                eval_langs=languages if isinstance(languages, dict) else list(languages),
                main_score=main_score,
            )

            def load_data(self, **_):
                self.dataset = data()
                self.data_loaded = True

        monkeypatch.setitem(sys.modules["mteb.get_tasks"]._TASKS_REGISTRY, f"Local{kind}", Local)

    def retrieval():
        queries, corpus = (
            Dataset.from_list([{"id": f"{i}", "text": text} for i, text in enumerate(texts)]) for texts in (TEXTS[:4], TEXTS)
        )
        split = {"queries": queries, "corpus": corpus, "relevant_docs": {f"{i}": {f"{i}": 1} for i in range(4)}, "top_ranked": None}
        return {"default": {"test": split}}

    pairs = {"sentence1": TEXTS, "sentence2": TEXTS[::-1]}
    task(AbsTaskSTS, "STS", "cosine_spearman", lambda: DatasetDict({"test": Dataset.from_dict({**pairs, "score": GOLD})}))
    task(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", retrieval)
    task(
        AbsTaskBitextMining,
        "BitextMining",
        "f1",
        lambda: {name: DatasetDict({"test": Dataset.from_dict(pairs)}) for name in ("deu-eng", "fra-eng")},
        {"deu-eng": ["deu-Latn", "eng-Latn"], "fra-eng": ["fra-Latn", "eng-Latn"]},
    )


@pytest.fixture
def encoder():
    return scratch_encoder(numbered_tokenizer(32), max_length=32).eval()


def test_main_scores_are_those_of_the_embeddings(local, encoder):
    task = Mteb(**SETTINGS, tasks=("LocalSTS", "LocalRetrieval", "LocalBitextMining"))
    task.check_data()
    scores = {(score.split, score.metric): score for score in task.evaluate(encoder).scores}
    assert list(scores) == [
        ("LocalSTS.test", "cosine_spearman"),
        ("LocalRetrieval.test", "ndcg_at_10"),
        ("LocalBitextMining.test.deu-eng", "f1"),
        ("LocalBitextMining.test.fra-eng", "f1"),
    ]
    embedding = task.embedding.resolved(encoder, task="mteb")
    vectors = embedding.vectors(encoder, TEXTS, task="mteb", what="texts", batch_tokens=64)
    cosines = (vectors * vectors[::-1]).sum(axis=1)
    assert scores["LocalSTS.test", "cosine_spearman"].value == pytest.approx(spearmanr(GOLD, cosines).statistic, abs=1e-6)
    queries = embedding.vectors(encoder, TEXTS[:4], task="mteb", what="queries", batch_tokens=64, purpose="query")
    ranks = (-(queries @ vectors.T)).argsort(axis=1, kind="stable").argsort(axis=1)[np.arange(4), np.arange(4)]
    gains = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0)
    assert scores["LocalRetrieval.test", "ndcg_at_10"].value == pytest.approx(gains.mean(), abs=1e-4)  # mteb rounds it
    assert [score.num_examples for score in scores.values()] == [12, 4, 12, 12]
    assert scores["LocalSTS.test", "cosine_spearman"].settings["revision"] == "r1"


def test_one_language(local, encoder):
    task = Mteb(**SETTINGS | {"languages": ("deu",)}, tasks=("LocalBitextMining",))
    assert [score.split for score in task.evaluate(encoder).scores] == ["LocalBitextMining.test.deu-eng"]
    with pytest.raises(UserError, match=r"task\.mteb\.languages: LocalBitextMining: No subsets were found"):
        Mteb(**SETTINGS | {"languages": ("sin",)}, tasks=("LocalBitextMining",))


def test_the_folder_says_how(local, encoder, tmp_path):
    from mlmx.models.sentence import SentenceModel

    encoder.sentence = SentenceModel(pooling="cls", normalize=True, max_length=8)
    encoder.save(tmp_path)
    task = Mteb(**SETTINGS | {"pooling": None, "max_length": None}, tasks=("LocalSTS",))
    settings = task.evaluate(load_encoder(tmp_path).eval()).scores[0].settings
    assert (settings["pooling"], settings["max_length"]) == ("cls", 8)


def test_mistakes(local, monkeypatch):
    with pytest.raises(UserError, match=r"task\.mteb\.tasks: mteb has no task 'STSBenchmrk'\. Did you mean 'STSBenchmark'\?"):
        Mteb(**SETTINGS, tasks=("STSBenchmrk",))
    with pytest.raises(UserError, match=r"CIFAR10ZeroShot is no single task of texts"):
        Mteb(**SETTINGS, tasks=("CIFAR10ZeroShot",))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"task\.mteb\.tasks: the data of STSBenchmark \(mteb/stsbenchmark-sts at revision [0-9a-f]+\)"
    ):
        Mteb(**SETTINGS, tasks=("STSBenchmark",)).check_data()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(UserError, match=r"mteb is not installed; install it with: pip install 'mlmx\[mteb\]'\."):
        Mteb(**SETTINGS, tasks=("STSBenchmark",))
