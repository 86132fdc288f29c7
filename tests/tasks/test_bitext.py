from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support, precision_score, recall_score

from mlmx.build import build
from mlmx.data.corpus import Corpus, Example, Segment
from mlmx.errors import UserError
from mlmx.tasks.bitext import Bitext
from mlmx.tasks.bitext_data import BitextData, BitextFiles, MicroworldBitext, MiningSet, ParallelBitext, ParallelSets, parallel_set
from mlmx.tasks.bitext_protocols import CosineRetrieval, MarginMining, Protocol, Tatoeba, best_threshold
from mlmx.tasks.bitext_scores import mining_by_chance, shares_of_weighted, weighted_by_chance
from mlmx.tasks.mining import MinedPairs, best_matches, mine
from mlmx.tasks.search import normalised
from mlmx.tasks.task import ratio_scores

CPU = torch.device("cpu")
MARGIN = {"margin": "ratio", "num_neighbors": 4, "retrieval": "intersection", "threshold": None, "train": None}
SETTINGS = {
    "_target_": "mlmx.tasks.bitext.Bitext",
    "name": "bitext",
    "data": {"_target_": "mlmx.tasks.bitext_data.MicroworldBitext", "seed": 0, "split": "test", "num_pairs": 50, "num_unpaired": 0},
    "protocol": {"_target_": "mlmx.tasks.bitext_protocols.MarginMining", **MARGIN},
    "layer": "last",
    "pooling": "mean",
    "width": None,
    "prefix": None,
    "max_length": 32,
    "batch_tokens": 256,
}


class Given(BitextData):
    def __init__(self, **sets: MiningSet) -> None:
        self.sets = sets

    def load(self) -> dict[str, MiningSet]:
        return self.sets


class Pairs(Corpus):
    num_sides = 2
    languages = ("aa", "bb")

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs
        self.skipped = {"a side is empty": 2}

    def examples(self) -> Iterator[Example]:
        for i, (source, target) in enumerate(self.pairs):
            yield Example(f"pairs:{i}", (Segment(source, "aa"), Segment(target, "bb")))


def task(*, data: MiningSet | None = None, **settings) -> Bitext:
    built = build({**SETTINGS, **settings}, where="task.bitext")
    if data is not None:
        built.data = Given(test=data)
    return built


def margin(**settings) -> MarginMining:
    return MarginMining(**{**MARGIN, **settings})


def mining_set(num_source: int, num_target: int, gold: set[tuple[int, int]], *, gold_complete: bool) -> MiningSet:
    return MiningSet(
        source=[f"s{i}" for i in range(num_source)],
        target=[f"t{i}" for i in range(num_target)],
        source_ids=[f"s{i}" for i in range(num_source)],
        target_ids=[f"t{i}" for i in range(num_target)],
        gold=frozenset(gold),
        gold_complete=gold_complete,
    )


def near_pairs(num_source: int, num_target: int, seed: int, *, noise: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of which source i and target i are close."""
    random = np.random.default_rng(seed)
    common = random.normal(0.2, 1, (max(num_source, num_target), 16))
    sides = (common[:number] + noise * random.normal(size=(number, 16)) for number in (num_source, num_target))
    source, target = (normalised(side.astype(np.float32)) for side in sides)
    return source, target


def judged(protocol: Protocol, data: MiningSet, embeddings, name: str = "test"):
    return protocol.judge(name, data, lambda _: embeddings, CPU)


def values(judgement) -> dict[str, float]:
    return {score.metric: score.value for score in ratio_scores([{**r, "split": "test"} for r in judgement.records], task="bitext")}


def scores(evaluation, split: str = "test") -> dict[str, float]:
    return {score.metric: score.value for score in evaluation.scores if score.split == split}


@pytest.mark.parametrize("retrieval", ["forward", "backward", "intersection", "max"])
@pytest.mark.parametrize("function", ["ratio", "distance", "absolute"])
def test_precision_recall_f1_are_those_of_sklearn_on_all_pairs(retrieval, function):
    data = mining_set(30, 40, {(i, i) for i in range(25)} | {(3, 39), (4, 5)}, gold_complete=True)
    embeddings = near_pairs(30, 40, 0)
    got = values(judged(margin(margin=function, retrieval=retrieval), data, embeddings))
    mined = {tuple(p) for p in mine(best_matches(*embeddings, margin=function, num_neighbors=4), retrieval).pairs.tolist()}
    every = [(i, j) for i in range(30) for j in range(40)]
    expected = precision_recall_fscore_support([p in data.gold for p in every], [p in mined for p in every], average="binary")[:3]
    names = [f"margin_{function}_{retrieval}_{metric}" for metric in ("precision", "recall", "f1")]
    np.testing.assert_allclose([got[name] for name in names], expected, rtol=0, atol=1e-6)
    assert 0 < got[names[2]] < 1
    # Five sources and twelve targets have no gold pair, so accuracy would count what cannot be right.
    assert set(got) == set(names)


def test_incomplete_gold_judges_only_pairs_it_knows_a_sentence_of():
    data = mining_set(4, 4, {(0, 0), (1, 1)}, gold_complete=False)
    axes = np.eye(4, dtype=np.float32)
    judgement = judged(margin(margin="absolute"), data, (axes, axes[[0, 2, 1, 3]]))
    # (0,0) is right; (1,2) and (2,1) each name a sentence whose partner is known to be another; of (3,3) nothing is known.
    assert values(judgement) == pytest.approx(
        {
            "margin_absolute_intersection_precision": 1 / 3,
            "margin_absolute_intersection_recall": 1 / 2,
            "margin_absolute_intersection_f1": 2 / 5,
        }
    )
    assert [record["id"] for record in judgement.records] == ["source s0", "source s1"]
    # (2,1) counts to s1, whose partner t1 is.
    assert judgement.records[1]["ratios"]["margin_absolute_intersection_precision"] == [0, 2]


def test_margin_gives_the_accuracy_of_best_matches_where_all_have_a_partner():
    data = mining_set(20, 20, {(i, i) for i in range(20)}, gold_complete=True)
    embeddings = near_pairs(20, 20, 1, noise=1.5)
    judgement = judged(margin(), data, embeddings)
    matches = best_matches(*embeddings, margin="ratio", num_neighbors=4)
    got = values(judgement)
    assert got["margin_ratio_accuracy_forward"] == (matches.forward == np.arange(20)).mean() < 1
    assert {judgement.trivial[f"margin_ratio_accuracy_{direction}"] for direction in ("forward", "backward")} == {1 / 20}
    assert got["margin_ratio_accuracy_backward"] == (matches.backward == np.arange(20)).mean() < 1
    assert len({record["id"] for record in judgement.records}) == len(judgement.records) == 60


@pytest.mark.parametrize("gold_complete", [True, False])
def test_what_chance_gets_in_mining(gold_complete):
    gold = {(i, 2 * i % 9) for i in range(5)} | {(0, 5)}
    data = mining_set(6, 9, gold, gold_complete=gold_complete)
    knows = np.array([[gold_complete or i < 5 or j in {j for _, j in gold} for j in range(9)] for i in range(6)])
    right = np.array([[(i, j) in gold for j in range(9)] for i in range(6)])
    # Each source sentence has each of the targets once in nine times.
    judged_pairs, hits = knows.sum() / 9, right.sum() / 9
    expected = {"precision": hits / judged_pairs, "recall": hits / len(gold), "f1": 2 * hits / (judged_pairs + len(gold))}
    assert mining_by_chance(data) == pytest.approx(expected)


def test_what_chance_gets_weighted_is_the_mean_over_all_that_may_be_found():
    gold = np.array([0, 1, 1, 3])
    every = [shares_of_weighted(gold, np.array(found)) for found in product(range(5), repeat=4)]
    expected = {name: np.mean([[share[name] for share in shares] for shares in every]) for name in every[0][0]}
    assert weighted_by_chance(gold, 5) == pytest.approx(expected)


def f1_of(kept: MinedPairs, data: MiningSet) -> float:
    hits = sum(tuple(pair) in data.gold for pair in kept.pairs.tolist())
    return 2 * hits / (len(kept.pairs) + len(data.gold))


def test_tuned_threshold_is_the_best_on_train_and_is_applied_to_test():
    # Sources of 30 to 59 have no partner.
    train = mining_set(60, 60, {(i, i) for i in range(30)}, gold_complete=True)
    test = replace(train, source=[f"test {i}" for i in range(60)])
    embeddings = {"train": near_pairs(60, 60, 2), "test": near_pairs(60, 60, 3, noise=0.5)}
    for _, target in embeddings.values():
        target[30:] = near_pairs(60, 60, 9)[1][30:]

    def embed(data: MiningSet):
        return embeddings["test" if data.source[0] == "test 0" else "train"]

    judgement = margin(retrieval="forward", threshold="tuned", train=Given(train=train)).judge("test", test, embed, CPU)
    tuned = judgement.settings["threshold"]
    mined = {name: mine(best_matches(*of, margin="ratio", num_neighbors=4), "forward") for name, of in embeddings.items()}
    assert f1_of(mined["train"].above(tuned), train) == max(
        f1_of(mined["train"].above(score), train) for score in mined["train"].scores
    )
    applied = f1_of(mined["test"].above(tuned), test)
    assert values(judgement)["margin_ratio_forward_tuned_f1"] == pytest.approx(applied, abs=1e-12)
    assert applied < f1_of(mined["test"].above(best_threshold(mined["test"], test)), test)


def test_a_threshold_is_tuned_on_the_embeddings_that_are_judged():
    data = mining_set(20, 20, {(i, i) for i in range(10)}, gold_complete=True)
    embeds = [lambda _, seed=seed, noise=noise: near_pairs(20, 20, seed, noise=noise) for seed, noise in ((1, 0.2), (2, 0.9))]
    one = margin(threshold="tuned", train=Given(test=data))
    again = [one.judge("test", data, embed, CPU).settings for embed in embeds]
    assert again == [margin(threshold="tuned", train=Given(test=data)).judge("test", data, e, CPU).settings for e in embeds]
    assert again[0] != again[1]


def test_threshold_keeps_equal_scores_together_and_is_zero_without_hits():
    pairs = np.array([[0, 0], [1, 1], [2, 0], [3, 0]])
    data = mining_set(4, 4, {(0, 0), (1, 1)}, gold_complete=True)
    assert best_threshold(MinedPairs(pairs, np.array([3, 2, 2, 1], np.float32)), data) == 1.5
    assert best_threshold(MinedPairs(pairs, np.array([4, 3, 2, 1], np.float32)), data) == 2.5
    assert best_threshold(MinedPairs(pairs[2:], np.array([2, 1], np.float32)), data) == 0


def test_sets_take_the_threshold_of_their_own_training_set():
    gold = {(i, i) for i in range(10)}
    sets = {name: mining_set(10, 10, gold, gold_complete=True) for name in ("de", "fr")}
    protocol = margin(threshold="tuned", train=Given(**sets))
    scale = {"de": 0.3, "fr": 0.9}
    found = {
        name: protocol.judge(name, sets[name], lambda _, n=name: near_pairs(10, 10, 1, noise=scale[n]), CPU).settings["threshold"]
        for name in sets
    }
    assert found["de"] != found["fr"]
    with pytest.raises(UserError, match=r"train: there is no set 'cs' among de, fr"):
        judged(protocol, sets["de"], near_pairs(10, 10, 1), name="cs")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"threshold": "tuned"}, "is tuned on data other than what is judged"), ({"train": Given()}, "train: has no effect")],
)
def test_a_tuned_threshold_needs_training_data_and_no_other_does(settings, message):
    with pytest.raises(UserError, match=message):
        margin(**settings)


def test_a_fixed_threshold_is_named():
    data = mining_set(3, 3, {(i, i) for i in range(3)}, gold_complete=True)
    axes = np.eye(3, dtype=np.float32)
    got = values(judged(margin(margin="absolute", threshold=0.9), data, (axes, axes)))
    assert got["margin_absolute_intersection_threshold_0.9_recall"] == 1
    nothing = values(judged(margin(threshold=99.0), data, (axes, axes)))
    assert nothing["margin_ratio_intersection_threshold_99_f1"] == 0
    assert nothing["margin_ratio_accuracy_forward"] == 1


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_cosine_is_what_sklearn_computes_of_the_nearest_neighbours_of_faiss(noise):
    faiss = pytest.importorskip("faiss")
    data = mining_set(50, 60, {(i, i) for i in range(50)}, gold_complete=True)
    source, target = near_pairs(50, 60, 4, noise=noise)
    index = faiss.IndexFlatIP(16)
    index.add(target)
    predicted, gold = index.search(source, 1)[1][:, 0], np.arange(50)
    weighted = {"average": "weighted", "zero_division": 0}
    assert values(judged(CosineRetrieval(), data, (source, target))) == pytest.approx(
        {
            "cosine_weighted_precision": precision_score(gold, predicted, **weighted),
            "cosine_weighted_recall": recall_score(gold, predicted, **weighted),
            "cosine_weighted_f1": f1_score(gold, predicted, **weighted),
            "cosine_accuracy": accuracy_score(gold, predicted),
        },
        abs=1e-6,
    )


def test_cosine_looks_up_the_sources_of_the_gold_in_all_targets():
    # As BUCC in MTEB: classes with several examples, sources without any, a source with two partners.
    gold = {(0, 3), (2, 3), (2, 1), (5, 0)}
    data = mining_set(6, 5, gold, gold_complete=False)
    source, target = near_pairs(6, 5, 5)
    labels = [j for _, j in sorted(gold)]
    predicted = (source @ target.T).argmax(axis=1)[[i for i, _ in sorted(gold)]]
    got = values(judged(CosineRetrieval(), data, (source, target)))
    assert got["cosine_weighted_f1"] == pytest.approx(f1_score(labels, predicted, average="weighted", zero_division=0), abs=1e-6)
    assert got["cosine_accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-6)


def test_repeated_sentences_count_line_by_line_in_cosine_and_as_one_in_margin():
    data = parallel_set(Pairs([("a", "x"), ("b", "y"), ("a", "z"), ("b", "y")]), None)
    axes = np.eye(3, dtype=np.float32)
    embed = {"a": axes[0], "b": axes[1], "x": axes[0], "y": axes[1], "z": normalised(axes[:1] + axes[2:])[0]}

    def embeddings(of: MiningSet):
        return np.stack([embed[text] for text in of.source]), np.stack([embed[text] for text in of.target])

    by_line = CosineRetrieval().judge("test", data, embeddings, CPU)
    assert len(by_line.records) == 4
    assert values(by_line)["cosine_accuracy"] == 0.5  # the second "a" and one of the equal pairs of lines are wrong
    by_text = margin(margin="absolute").judge("test", data, embeddings, CPU)
    assert values(by_text)["margin_absolute_accuracy_backward"] == 1
    assert values(by_text)["margin_absolute_intersection_recall"] == pytest.approx(2 / 3)


def test_tatoeba_is_the_error_of_the_nearest_neighbours_of_faiss_both_ways():
    faiss = pytest.importorskip("faiss")
    data = mining_set(50, 50, {(i, i) for i in range(50)}, gold_complete=True)
    source, target = near_pairs(50, 50, 9, noise=1.1)

    def accuracy(asked, among):
        # The L2 index of XTREME's script; of normalised vectors it has the same neighbours.
        index = faiss.IndexFlatL2(16)
        index.add(among)
        return (index.search(asked, 1)[1][:, 0] == np.arange(50)).mean()

    judgement = judged(Tatoeba(), data, (source, target))
    expected = {"tatoeba_accuracy_forward": accuracy(source, target), "tatoeba_accuracy_backward": accuracy(target, source)}
    assert values(judgement) == pytest.approx(expected, abs=1e-6)
    assert expected["tatoeba_accuracy_forward"] != expected["tatoeba_accuracy_backward"]
    assert judgement.trivial == dict.fromkeys(expected, 0.02)


def test_protocols_never_share_the_name_of_a_score():
    data = mining_set(10, 10, {(i, i) for i in range(10)}, gold_complete=True)
    names = [set(values(judged(protocol, data, near_pairs(10, 10, 7)))) for protocol in (margin(), CosineRetrieval(), Tatoeba())]
    assert all(
        all(name.startswith(prefix) for name in of) for prefix, of in zip(("margin_", "cosine_", "tatoeba_"), names, strict=True)
    )


SENTENCES = [f"w{i} w{(7 * i) % 40} w{(11 * i + 3) % 40}" for i in range(40)]


def test_an_encoder_that_sees_equal_words_finds_them(make_encoder):
    encoder = make_encoder([word for sentence in SENTENCES for word in sentence.split()])
    data = parallel_set(Pairs([(sentence, sentence) for sentence in SENTENCES]), None)
    for layer, number in (("last", 2), (0, 0), (-1, 2), (2, 2)):
        evaluation = task(data=data, layer=layer).evaluate(encoder)
        assert scores(evaluation) == dict.fromkeys(scores(evaluation), 1.0)
        assert {score.num_examples for score in evaluation.scores} == {40}
        assert all(score.settings == {"layer": number, "pooling": "mean", "max_length": 32} for score in evaluation.scores)
    shuffled = parallel_set(Pairs(list(zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1], strict=True))), None)
    assert scores(task(data=shuffled).evaluate(encoder))["margin_ratio_accuracy_forward"] == 0


def test_several_sets_have_a_score_each_and_their_mean(make_encoder):
    encoder = make_encoder([word for sentence in SENTENCES for word in sentence.split()])
    built = task(protocol={"_target_": "mlmx.tasks.bitext_protocols.Tatoeba"})
    right = parallel_set(Pairs([(sentence, sentence) for sentence in SENTENCES]), None)
    wrong = parallel_set(Pairs(list(zip(SENTENCES[:10], SENTENCES[1:10] + SENTENCES[:1], strict=True))), None)
    built.data = Given(deu=right, fra=wrong)
    evaluation = built.evaluate(encoder)
    both = ("tatoeba_accuracy_forward", "tatoeba_accuracy_backward")
    assert [scores(evaluation, split) for split in ("deu", "fra", "mean")] == [dict.fromkeys(both, x) for x in (1.0, 0.0, 0.5)]
    assert [score.num_examples for score in evaluation.scores] == [40, 40, 10, 10, 50, 50]
    assert [score.trivial for score in evaluation.scores][-1] == pytest.approx((1 / 40 + 1 / 10) / 2)
    assert {record["split"] for record in evaluation.predictions} == {"deu", "fra"}


def test_records_add_up_to_the_scores(make_encoder):
    built = task()
    data = built.data.load()["test"]
    words = [word for text in [*data.source, *data.target] for word in text.split()]
    evaluation = built.evaluate(make_encoder(words))
    for score in evaluation.scores:
        ratios = [record["ratios"][score.metric] for record in evaluation.predictions if score.metric in record["ratios"]]
        part, whole = np.sum(ratios, axis=0)
        assert score.value == part / whole
    assert scores(evaluation)["margin_ratio_accuracy_forward"] < 0.3  # untrained


def test_microworld_has_sentences_without_translation():
    (name, data), *others = MicroworldBitext(seed=0, split="dev", num_pairs=10, num_unpaired=5).load().items()
    assert (name, others) == ("dev", [])
    paired = MicroworldBitext(seed=0, split="dev", num_pairs=20, num_unpaired=0).load()["dev"]
    assert list(data.source) == list(paired.source[:15])
    assert list(data.target) == [*paired.target[:10], *paired.target[15:20]]
    assert data.gold == {(i, i) for i in range(10)}


def test_bad_settings_are_all_told_before_anything_starts():
    with pytest.raises(UserError) as error:
        task(layer="first", nearest=3, protocol={**SETTINGS["protocol"], "margin": "rati", "num_neighbors": 0})
    places = {problem.where.removeprefix("task.bitext.") for problem in error.value.problems}
    assert {place.removesuffix(".int").partition(".literal")[0] for place in places} >= {
        "nearest",
        "protocol.margin",
        "protocol.num_neighbors",
    }
    assert any(place.startswith("layer") for place in places)


def test_too_long_for_the_encoder(make_encoder):
    data = parallel_set(Pairs([("a", "b")]), None)
    with pytest.raises(UserError, match=r"task.bitext.max_length: 65 is more than the 64 positions"):
        task(data=data, max_length=65).evaluate(make_encoder(["a", "b"]))


def test_cut_sentences_are_reported(make_encoder, caplog):
    data = parallel_set(Pairs([("a b a b a", "b")]), None)
    with caplog.at_level(logging.WARNING):
        task(data=data, max_length=4).evaluate(make_encoder(["a", "b"]))
    assert "1 of 1 source sentences are longer than max_length=4; 3 pieces are cut off" in caplog.text


def test_parallel_corpus(caplog):
    corpus = Pairs([("a", "x"), ("b", "y"), ("c", "z")])
    with caplog.at_level(logging.WARNING):
        data = ParallelBitext(corpus=corpus, split="dev", max_pairs=2).load()["dev"]
    assert data.source == ["a", "b"]
    assert data.gold == {(0, 0), (1, 1)}
    assert "2 lines skipped: a side is empty" in caplog.text
    corpus.num_sides = 1
    with pytest.raises(UserError, match="has no pairs"):
        ParallelBitext(corpus=corpus, split="dev", max_pairs=None)
    with pytest.raises(UserError, match="no pairs"):
        parallel_set(Pairs([]), None)


def parallel_sets(path, **settings) -> ParallelSets:
    return ParallelSets(**{"path": path, "columns": (0, 1), "header": False, "languages": None, **settings})


def test_a_set_for_each_language(tmp_path):
    for language in ("deu", "fra"):
        with gzip.open(tmp_path / f"tatoeba.{language}-eng.tsv.gz", "wt") as file:
            file.write(f"{language} one\tone\n{language} two\ttwo\n")
    pattern = str(tmp_path / "tatoeba.*-eng.tsv.gz")
    sets = parallel_sets(pattern).load()
    assert {name: (data.source, data.target) for name, data in sets.items()} == {
        language: ([f"{language} one", f"{language} two"], ["one", "two"]) for language in ("deu", "fra")
    }
    assert list(parallel_sets(pattern, languages=("fra",)).load()) == ["fra"]
    with pytest.raises(UserError, match=r"languages: 'frau' is none of deu, fra.*Did you mean 'fra'"):
        parallel_sets(pattern, languages=("frau",)).load()
    with pytest.raises(UserError, match="needs one"):
        parallel_sets(str(tmp_path / "tatoeba.deu-eng.tsv.gz"))
    with pytest.raises(UserError, match="columns: are two"):
        parallel_sets(pattern, columns=None)
    with pytest.raises(UserError, match=r"tatoeba.deu-eng.tsv.gz:1: has 2 columns, so that column 2 is missing"):
        parallel_sets(pattern, columns=(0, 2)).load()


def test_text_files_of_each_side_as_laser_publishes_them(tmp_path):
    for language in ("deu", "ell"):
        (tmp_path / f"tatoeba.{language}-eng.{language}").write_text(f"{language} one\n")
        (tmp_path / f"tatoeba.{language}-eng.eng").write_text("one\n")
    sets = parallel_sets((str(tmp_path / "tatoeba.*-eng.*"), str(tmp_path / "tatoeba.*-eng.eng")), columns=None).load()
    assert {name: data.source for name, data in sets.items()} == {"deu": ["deu one"], "ell": ["ell one"]}


def files(folder, *, gold: str = "s1\tt1\n", source: str = "s1\tone\ns2\ttwo\n", gold_complete: bool = False) -> BitextFiles:
    (folder / "source.tsv").write_text(source)
    (folder / "target.tsv").write_text("t1\teins\nt2\teins\nt3\t \nt4\tvier\n")
    (folder / "gold.tsv").write_text(gold)
    paths = {name: folder / f"{name}.tsv" for name in ("source", "target", "gold")}
    return BitextFiles(**paths, gold_complete=gold_complete, split="test")


def test_files(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = files(tmp_path, gold="s1\tt2\ns2\tt9\ns2\tt3\ns2\tt4\n").load()["test"]
    # t3 is blank.
    assert data.target_ids == ["t1", "t2", "t4"]
    assert data.gold == {(0, 1), (1, 2)}
    # t2 repeats t1, so both are the one sentence t1.
    assert data.distinct().target == ["eins", "vier"]
    assert data.distinct().target_ids == ["t1", "t4"]
    assert data.distinct().gold == {(0, 0), (1, 1)}
    assert "2 gold pairs name an id without a sentence" in caplog.text
    assert "gold.tsv:2" in caplog.text
    assert "1 lines without text skipped" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gold": "x\ty\n"}, "gold.tsv: none of its pairs has both ids"),
        ({"gold": "s1\tt1\ns2\tt4\t0.5\n"}, "gold.tsv:2: 2 ids separated by a tab are expected, found 3 fields"),
        ({"gold": "s1\n"}, "gold.tsv:1: 2 fields separated by tabs"),
        ({"gold": "s1\tt1\ns9\tt1\n", "gold_complete": True}, r"gold\.tsv:2: .*source\.tsv has no sentence 's9'"),
        ({"gold": "s1\tt1\ns1\tt9\n", "gold_complete": True}, r"gold\.tsv:2: .*target\.tsv has no sentence 't9'"),
        ({"source": "s1\tone\ns1\ttwo\n"}, r"source.tsv:2: the id 's1' occurs twice"),
        ({"source": "s1 one\n"}, r"source.tsv:1: 2 fields separated by tabs"),
        ({"source": "s1\t \n"}, "source.tsv: holds no sentence"),
    ],
)
def test_bad_files(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        files(tmp_path, **given).load()


TATOEBA = Path(__file__).parents[3] / "shared" / "data" / "tatoeba_laser"


@pytest.mark.skipif(not TATOEBA.is_dir(), reason="needs the data set")
def test_all_languages_of_tatoeba_are_read():
    sets = parallel_sets(str(TATOEBA / "tatoeba.*-eng.tsv.gz")).load()
    assert len(sets) == 15
    assert {len(sets[language].gold) for language in ("deu", "tam", "tel")} == {1000, 307, 234}
