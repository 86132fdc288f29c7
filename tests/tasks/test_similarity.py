from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from mlmx.errors import UserError
from mlmx.tasks.sentence_data import MicroworldJudgements
from mlmx.tasks.similarity import Similarity
from mlmx.tasks.similarity_data import SUBSETS, ScoredPairs, SentEvalFiles, SimilarityData, SimilarityHub

WORDS = ["a", "b", "c", "d", "e"]


@pytest.fixture
def folder(tmp_path) -> Path:
    sick = ["pair_ID\tsentence_A\tsentence_B\trelatedness_score\tjudgment", "9\ta b\ta\t4.5\tX", "7\ta\tc\t1\tX"]
    files = {"SICK/SICK_test_annotated.txt": "\n".join(sick)}
    files["STS/STSBenchmark/sts-test.csv"] = 'main\tMSRvid\t2012\t1\t2.500\t"a b\tb a"\nmain\tMSRvid\t2012\t2\t0\tc\td\tlicence\n'
    for number, subset in enumerate(SUBSETS["STS16"]):
        files[f"STS/STS16-en-test/STS.input.{subset}.txt"] = f"a\tb\tsource\tsource\nc\td\n{'e ' * (number + 1)}\ta\n"
        files[f"STS/STS16-en-test/STS.gs.{subset}.txt"] = f"{number}\n\n5\n"
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def task(data: SimilarityData, **settings) -> Similarity:
    return Similarity(
        **{
            "name": "it",
            "data": data,
            "layer": "last",
            "pooling": "mean",
            "width": None,
            "prefix": None,
            "max_length": 16,
            "batch_tokens": 20,
            **settings,
        }
    )


def hub(folder, **settings) -> SimilarityHub:
    columns = {"text_columns": ("sentence1", "sentence2"), "score_column": "score"}
    return SimilarityHub(**{"name": str(folder), "config": None, "revision": None, "splits": ("test",), **columns, **settings})


def test_a_data_set_of_the_hub_is_a_set_for_each_split(tmp_path):
    for split, score in (("test", 4.5), ("dev", -7.0)):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"sentence1": "a", "sentence2": "b", "score": score}) + "\n")
    sets = hub(tmp_path, splits=("test", "validation")).load()
    assert {name: [(pair.id, pair.texts, pair.gold) for pair in pairs] for name, pairs in sets.items()} == {
        "test": [("0", ("a", "b"), 4.5)],
        "validation": [("0", ("a", "b"), -7.0)],
    }
    with pytest.raises(UserError, match=r"\[test\]:0: no column 'gold'"):
        hub(tmp_path, score_column="gold").load()
    with pytest.raises(UserError, match="revision: pin the commit of some/pairs"):
        hub("some/pairs")


@pytest.mark.parametrize("score", [None, True, "high", math.nan])
def test_a_score_that_is_no_number_is_told_with_its_place(monkeypatch, tmp_path, score):
    records = [{"sentence1": "a", "sentence2": "b", "score": score}]
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **settings: datasets.IterableDataset.from_generator(lambda: records))
    with pytest.raises(UserError, match=rf"\[test\]:0: the score {score!r} is no number"):
        hub(tmp_path).load()


def test_all_subsets_of_a_year_make_one_list_without_what_nobody_judged(folder, caplog):
    with caplog.at_level(logging.WARNING):
        pairs = SentEvalFiles(folder=folder, sets=("STS16",)).load()["STS16"]
    assert len(pairs) == 2 * len(SUBSETS["STS16"]) == 10
    assert [(pair.id, pair.texts, pair.gold) for pair in pairs[2:4]] == [
        ("headlines 0", ("a", "b"), 1.0),
        ("headlines 2", ("e e ", "a"), 5.0),
    ]
    assert "STS16: 5 pairs without a score are left out" in caplog.text


def test_the_benchmark_and_sick_are_read(folder):
    sets = SentEvalFiles(folder=folder, sets=("STS-B", "SICK-R")).load()
    assert [(pair.id, pair.texts, pair.gold) for pair in sets["STS-B"]] == [("0", ('"a b', 'b a"'), 2.5), ("1", ("c", "d"), 0.0)]
    assert [(pair.id, pair.texts, pair.gold) for pair in sets["SICK-R"]] == [("9", ("a b", "a"), 4.5), ("7", ("a", "c"), 1.0)]


@pytest.mark.parametrize(
    ("file", "text", "sets", "message"),
    [
        (
            "STS/STS16-en-test/STS.gs.headlines.txt",
            "1\n",
            "STS16",
            r"STS\.gs\.headlines\.txt: has 1 lines, but STS\.input\.headlines\.txt has 3",
        ),
        (
            "STS/STS16-en-test/STS.gs.headlines.txt",
            "1\nx\n2\n",
            "STS16",
            r"headlines\.txt:2: the score 'x' is no number from 0 to 5",
        ),
        (
            "STS/STS16-en-test/STS.input.headlines.txt",
            "a\tb\nc\td\ne\n",
            "STS16",
            r"headlines\.txt:3: two sentences separated by a tab",
        ),
        ("STS/STSBenchmark/sts-test.csv", "a\tb\n", "STS-B", r"sts-test\.csv:1: 2 fields; at least 7"),
        ("SICK/SICK_test_annotated.txt", "pair_ID\tA\n1\ta\n", "SICK-R", r"annotated\.txt:1: no column 'sentence_A'"),
        (
            "SICK/SICK_test_annotated.txt",
            "pair_ID\tsentence_A\tsentence_B\trelatedness_score\n1\ta\tb\t2\n1\tc\td\t3\n",
            "SICK-R",
            r"annotated\.txt:3: a second pair '1'",
        ),
        (
            "SICK/SICK_test_annotated.txt",
            "pair_ID\tsentence_A\tsentence_B\trelatedness_score\n",
            "SICK-R",
            "there is no pair of SICK-R in",
        ),
        (None, "", "STS12", r"holds no STS/STS12-en-test/STS\.input\.MSRpar\.txt"),
    ],
)
def test_bad_files_are_named(folder, file, text, sets, message):
    if file:
        (folder / file).write_text(text)
    with pytest.raises(UserError, match=message):
        SentEvalFiles(folder=folder, sets=(sets,)).load()


@pytest.mark.parametrize(("pooling", "width"), [("mean", None), ("cls", None), ("mean", 8)])
def test_scores_are_the_correlations_of_cosines(folder, make_encoder, pooling, width):
    encoder = make_encoder(WORDS)
    similarity = task(SentEvalFiles(folder=folder, sets=("STS16", "SICK-R")), pooling=pooling, layer=1, width=width)
    evaluation = similarity.evaluate(encoder)
    pairs = similarity.data.load()["STS16"]

    def embedding(text: str) -> torch.Tensor:
        states = encoder.base(**encoder.tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[1][0]
        return (states[0] if pooling == "cls" else states.mean(dim=0))[:width]

    encoder.base.set_attn_implementation("eager")
    with torch.no_grad():
        cosines = [float(torch.cosine_similarity(*map(embedding, pair.texts), dim=0)) for pair in pairs]
    gold = [pair.gold for pair in pairs]
    stored = [record for record in evaluation.predictions if record["split"] == "STS16"]
    assert [record["prediction"] for record in stored] == pytest.approx(cosines, abs=1e-5)
    assert [record["label"] for record in stored] == gold
    found = [record["prediction"] for record in stored]
    told = {(score.split, score.metric): (score.value, score.num_examples, score.trivial) for score in evaluation.scores}
    assert told["STS16", "cosine_spearman"] == pytest.approx((spearmanr(gold, found).statistic, 10, 0.0), abs=1e-6)
    assert told["STS16", "cosine_pearson"] == pytest.approx((pearsonr(gold, found).statistic, 10, 0.0), abs=1e-6)
    assert told["SICK-R", "cosine_spearman"][1] == 2


def test_scored_pairs_of_other_data(make_encoder):
    def data(judgement):
        return MicroworldJudgements(judgement=judgement, seed=0, num_train=1, num_dev=5, num_test=8)

    evaluation = task(ScoredPairs(pairs=data("similarity"), splits=("dev", "test")), max_length=64).evaluate(make_encoder(WORDS))
    assert [(score.split, score.num_examples) for score in evaluation.scores[::2]] == [("dev", 5), ("test", 8)]
    assert np.isfinite([score.value for score in evaluation.scores]).all()
    with pytest.raises(UserError, match="have labels"):
        ScoredPairs(pairs=data("paraphrase"), splits=("test",))
    with pytest.raises(UserError, match=r"no split 'tets'; there are train, dev, test\. Did you mean 'test'"):
        ScoredPairs(pairs=data("similarity"), splits=("tets",))
