from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from mlmx.build import build
from mlmx.data.corpus import Corpus, Example, Segment
from mlmx.errors import UserError
from mlmx.tasks.bitext import Bitext, best_f1
from mlmx.tasks.bitext_data import BitextData, BitextFiles, MiningSet, ParallelBitext, diagonal
from mlmx.tasks.mining import Matches, MinedPairs, mine

SETTINGS = {
    "_target_": "mlmx.tasks.bitext.Bitext",
    "name": "bitext",
    "data": {"_target_": "mlmx.tasks.bitext_data.MicroworldBitext", "seed": 0, "split": "test", "num_pairs": 50},
    "layer": "last",
    "pooling": "mean",
    "margin": "ratio",
    "num_neighbors": 4,
    "retrieval": "intersection",
    "threshold": None,
    "max_length": 32,
    "batch_tokens": 256,
}


class Given(BitextData):
    def __init__(self, data: MiningSet) -> None:
        self.data = data

    def load(self) -> MiningSet:
        return self.data


class Pairs(Corpus):
    parallel = True
    languages = ("aa", "bb")

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs
        self.skipped = {"a side is empty": 2}

    def examples(self) -> Iterator[Example]:
        for i, (source, target) in enumerate(self.pairs):
            yield Example(f"pairs:{i}", (Segment(source, "aa"), Segment(target, "bb")))


def task(data: MiningSet | None = None, **settings) -> Bitext:
    built = build({**SETTINGS, **settings}, where="task.bitext")
    if data is not None:
        built.data = Given(data)
    return built


def mining_set(num_source: int, num_target: int, gold: set[tuple[int, int]], *, gold_complete: bool) -> MiningSet:
    return MiningSet(
        source=[f"s{i}" for i in range(num_source)],
        target=[f"t{i}" for i in range(num_target)],
        source_ids=[f"s{i}" for i in range(num_source)],
        target_ids=[f"t{i}" for i in range(num_target)],
        gold=frozenset(gold),
        gold_complete=gold_complete,
        split="test",
    )


def random_matches(num_source: int, num_target: int, seed: int, *, num_true: int = 20) -> Matches:
    scores = np.random.default_rng(seed).normal(size=(num_source, num_target)).astype(np.float32)
    true = np.arange(min(num_true, *scores.shape))
    scores[true, true] += 2.5
    return Matches(scores.argmax(1), scores.max(1), scores.argmax(0), scores.max(0))


def values(evaluation) -> dict[str, float]:
    return {score.metric: score.value for score in evaluation.scores}


@pytest.mark.parametrize("retrieval", ["forward", "backward", "intersection", "max"])
def test_precision_recall_f1_are_those_of_sklearn_on_all_pairs(retrieval):
    data = mining_set(30, 40, {(i, i) for i in range(25)} | {(3, 39), (4, 4)}, gold_complete=True)
    matches = random_matches(30, 40, 0)
    evaluation = task(data, retrieval=retrieval)._evaluation(data, matches)
    mined = {tuple(pair) for pair in mine(matches, retrieval).pairs.tolist()}
    every = [(i, j) for i in range(30) for j in range(40)]
    expected = precision_recall_fscore_support([p in data.gold for p in every], [p in mined for p in every], average="binary")[:3]
    got = values(evaluation)
    names = [f"margin_ratio_{retrieval}_{metric}" for metric in ("precision", "recall", "f1")]
    np.testing.assert_allclose([got[name] for name in names], expected)
    assert 0 < got[names[2]] < 1
    # Five sources and twelve targets have no gold pair, so accuracy would count what cannot be right.
    assert not [name for name in got if name.startswith("accuracy")]


def test_incomplete_gold_judges_only_pairs_it_knows_a_sentence_of():
    data = mining_set(4, 4, {(0, 0), (1, 1)}, gold_complete=False)
    matches = Matches(np.array([0, 2, 1, 3]), np.ones(4, np.float32), np.array([0, 2, 1, 3]), np.ones(4, np.float32))
    evaluation = task(data)._evaluation(data, matches)
    # (0,0) is right; (1,2) and (2,1) each name a sentence whose partner is known to be another; of (3,3) nothing is known.
    assert values(evaluation) == pytest.approx(
        {
            "margin_ratio_intersection_precision": 1 / 3,
            "margin_ratio_intersection_recall": 1 / 2,
            "margin_ratio_intersection_f1": 2 / 5,
        }
    )
    assert [record["id"] for record in evaluation.predictions] == ["source s0", "source s1"]
    # (2,1) counts to s1, whose partner t1 is.
    assert evaluation.predictions[1]["ratios"]["margin_ratio_intersection_precision"] == [0, 2]


def test_records_add_up_to_the_scores_and_carry_every_accuracy():
    data = mining_set(20, 20, {(i, i) for i in range(20)}, gold_complete=True)
    matches = random_matches(20, 20, 1)
    evaluation = task(data)._evaluation(data, matches)
    for score in evaluation.scores:
        ratios = [record["ratios"][score.metric] for record in evaluation.predictions if score.metric in record["ratios"]]
        part, whole = np.sum(ratios, axis=0)
        assert score.value == part / whole
        assert score.num_examples == (whole if score.metric.endswith("precision") else 20)
    got = values(evaluation)
    assert got["accuracy_forward"] == (matches.forward == np.arange(20)).mean()
    assert got["accuracy_backward"] == (matches.backward == np.arange(20)).mean()
    assert len({record["id"] for record in evaluation.predictions}) == len(evaluation.predictions) == 60


def test_oracle_threshold_is_the_best_of_all_thresholds():
    data = mining_set(30, 30, {(i, i) for i in range(15)}, gold_complete=True)
    matches = random_matches(30, 30, 2, num_true=15)
    mined = mine(matches, "forward")

    def f1(kept: MinedPairs) -> float:
        hits = sum(tuple(pair) in data.gold for pair in kept.pairs.tolist())
        return 2 * hits / (len(kept.pairs) + len(data.gold))

    best = max(f1(mined.above(threshold)) for threshold in mined.scores)
    assert f1(best_f1(mined, data)) == best > f1(mined)
    got = values(task(data, retrieval="forward", threshold="oracle")._evaluation(data, matches))
    assert got["margin_ratio_forward_oracle_threshold_f1"] == pytest.approx(best)


def test_a_fixed_threshold_is_named():
    data = mining_set(3, 3, {(i, i) for i in range(3)}, gold_complete=True)
    matches = Matches(np.arange(3), np.array([1.3, 1.1, 1.2], np.float32), np.arange(3), np.array([1.3, 1.1, 1.2], np.float32))
    got = values(task(data, threshold=1.15)._evaluation(data, matches))
    assert got["margin_ratio_intersection_threshold_1.15_recall"] == pytest.approx(2 / 3)
    assert got["accuracy_forward"] == 1


def test_nothing_mined_scores_zero():
    data = mining_set(2, 2, {(0, 0), (1, 1)}, gold_complete=True)
    matches = random_matches(2, 2, 0)
    assert values(task(data, threshold=99.0)._evaluation(data, matches))["margin_ratio_intersection_threshold_99_f1"] == 0


def test_equal_sentences_count_as_one_and_each_translation_is_right():
    data = diagonal([("a", "x"), ("b", "y"), ("a", "z"), ("b", "y")], split="dev")
    assert data.source == ["a", "b"]
    assert data.target == ["x", "y", "z"]
    assert data.gold == {(0, 0), (1, 1), (0, 2)}
    evaluation = task(data)._evaluation(
        data, Matches(np.array([2, 1]), np.ones(2, np.float32), np.array([0, 1, 0]), np.ones(3, np.float32))
    )
    assert values(evaluation)["accuracy_forward"] == values(evaluation)["accuracy_backward"] == 1
    assert values(evaluation)["margin_ratio_intersection_recall"] == pytest.approx(2 / 3)


def test_an_encoder_that_sees_equal_words_finds_them(make_encoder):
    sentences = [f"w{i} w{(7 * i) % 40} w{(11 * i + 3) % 40}" for i in range(40)]
    encoder = make_encoder([word for sentence in sentences for word in sentence.split()])
    data = diagonal([(sentence, sentence) for sentence in sentences], split="test")
    for layer in ("last", 0, -1, 2):
        evaluation = task(data, layer=layer).evaluate(encoder)
        assert values(evaluation) == dict.fromkeys(values(evaluation), 1.0)
        assert {score.num_examples for score in evaluation.scores} == {40}
    shuffled = diagonal(list(zip(sentences, sentences[1:] + sentences[:1], strict=True)), split="test")
    assert values(task(shuffled).evaluate(encoder))["accuracy_forward"] == 0


def test_microworld_runs_and_untrained_is_at_the_floor(make_encoder):
    built = task()
    words = [word for text in [*built.data.load().source, *built.data.load().target] for word in text.split()]
    got = values(built.evaluate(make_encoder(words)))
    assert got["accuracy_forward"] < 0.3


def test_bad_settings_are_all_told_before_anything_starts():
    with pytest.raises(UserError) as error:
        task(layer="first", margin="rati", num_neighbors=0, nearest=3)
    assert {problem.where.split(".")[2] for problem in error.value.problems} == {"layer", "margin", "num_neighbors", "nearest"}


def test_too_long_for_the_encoder(make_encoder):
    data = diagonal([("a", "b")], split="test")
    with pytest.raises(UserError, match=r"task.bitext.max_length: 65 is more than the 64 positions"):
        task(data, max_length=65).evaluate(make_encoder(["a", "b"]))


def test_cut_sentences_are_reported(make_encoder, caplog):
    data = diagonal([("a b a b a", "b")], split="test")
    with caplog.at_level(logging.WARNING):
        task(data, max_length=4).evaluate(make_encoder(["a", "b"]))
    assert "1 of 1 source sentences are longer than max_length=4; 3 pieces are cut off" in caplog.text


def test_parallel_corpus(caplog):
    corpus = Pairs([("a", "x"), ("b", "y"), ("c", "z")])
    with caplog.at_level(logging.WARNING):
        data = ParallelBitext(corpus=corpus, split="dev", max_pairs=2).load()
    assert data.source == ["a", "b"]
    assert data.gold == {(0, 0), (1, 1)}
    assert "2 lines skipped: a side is empty" in caplog.text
    corpus.parallel = False
    with pytest.raises(UserError, match="monolingual"):
        ParallelBitext(corpus=corpus, split="dev", max_pairs=None)


def files(folder, *, gold: str = "s1\tt1\n", source: str = "s1\tone\ns2\ttwo\n") -> BitextFiles:
    (folder / "source.tsv").write_text(source)
    (folder / "target.tsv").write_text("t1\teins\nt2\teins\nt3\t \nt4\tvier\n")
    (folder / "gold.tsv").write_text(gold)
    paths = {name: folder / f"{name}.tsv" for name in ("source", "target", "gold")}
    return BitextFiles(**paths, gold_complete=False, split="test")


def test_files(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = files(tmp_path, gold="s1\tt2\ns2\tt9\ns2\tt3\ns2\tt4\n").load()
    # t2 repeats t1, so both are the one sentence t1; t3 is blank.
    assert data.target == ["eins", "vier"]
    assert data.target_ids == ["t1", "t4"]
    assert data.gold == {(0, 0), (1, 1)}
    assert "2 gold pairs name an id without a sentence" in caplog.text
    assert "gold.tsv:2" in caplog.text
    assert "1 lines without text skipped" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gold": "x\ty\n"}, "gold.tsv: none of its pairs has both ids"),
        ({"source": "s1\tone\ns1\ttwo\n"}, r"source.tsv:2: the id 's1' occurs twice"),
        ({"source": "s1 one\n"}, r"source.tsv:1: 2 fields separated by tabs"),
        ({"source": "s1\t \n"}, "source.tsv: holds no sentence"),
    ],
)
def test_bad_files(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        files(tmp_path, **given).load()
