from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mlmx.build import build, problems_of
from mlmx.data.corpora.parallel import ParallelCorpus
from mlmx.data.corpus import Corpus, Example, Segment
from mlmx.data.microworld import MicroworldCorpus
from mlmx.errors import UserError
from mlmx.tasks.curation import Curation
from mlmx.tasks.curation_filters import CopyOverlap, Duplicates, Languages, LengthRatio, Scripts
from mlmx.tasks.curation_noise import InjectedNoise, Pair
from mlmx.tasks.search import normalised

KINDS = ("shuffled", "truncated", "copied", "wrong_language", "mangled")
NOISE = {
    "_target_": "mlmx.tasks.curation_noise.InjectedNoise",
    "seed": 0,
    "ratios": dict.fromkeys(KINDS, 0.1),
    "truncated_ratio": 0.5,
    "mangled_ratio": 0.4,
}
RULES = "mlmx.tasks.curation_filters."
CORPUS = {"_target_": "mlmx.data.microworld.MicroworldCorpus", "seed": 0, "num_pairs": 200, "split": "dev", "view": "parallel"}
CORPUS["languages"] = ["qla", "qka"]
SETTINGS = {
    "_target_": "mlmx.tasks.curation.Curation",
    "name": "curation",
    "corpus": CORPUS,
    "noise": NOISE,
    "score": "cosine",
    "num_neighbors": 4,
    "filters": {},
    "num_kept": None,
    "precision_at": [20, 100],
    "layer": "last",
    "pooling": None,
    "prefix": None,
    "max_length": None,
    "batch_tokens": 4096,
}


class Pairs(Corpus):
    num_sides = 2
    languages = ("aa", "bb")

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs
        self.skipped = {"blank": 2}

    def examples(self) -> Iterator[Example]:
        for i, (source, target) in enumerate(self.pairs):
            yield Example(f"pairs:{i}", (Segment(source, "aa"), Segment(target, "bb")))


def task(*, corpus: Corpus | None = None, **settings) -> Curation:
    built = build({**SETTINGS, **settings}, where="task.curation")
    if corpus is not None:
        built.corpus = corpus
    return built


def noise(**settings) -> InjectedNoise:
    return build({**NOISE, **settings}, where="noise")


def clean_pairs(number: int = 1000) -> list[Pair]:
    corpus = MicroworldCorpus(seed=0, num_pairs=number, split="dev", view="parallel", languages=["qla", "qka"])
    return [Pair(example.where, *(segment.text for segment in example.segments)) for example in corpus.examples()]


def values(evaluation) -> dict[str, float]:
    return {score.metric: score.value for score in evaluation.scores}


# --- noise


def test_noise_does_to_each_pair_what_its_mark_says():
    clean = clean_pairs()
    spoilt = noise().spoil(clean)
    sources, targets = [pair.source for pair in clean], {pair.target for pair in clean}
    counts = Counter(pair.noise for pair in spoilt)
    assert all(70 < counts[kind] < 130 for kind in KINDS)
    for before, after in zip(clean, spoilt, strict=True):
        assert (after.where, after.source) == (before.where, before.source)
        assert (after.noise is None) == (after.target == before.target)
        words, left = before.target.split(), after.target.split()
        if after.noise == "shuffled":
            assert after.target in targets
        elif after.noise == "wrong_language":
            assert after.target in sources
            assert after.target != after.source
        elif after.noise == "copied":
            assert after.target == after.source
        elif after.noise == "truncated":
            assert left == words[: len(left)]
            assert abs(len(left) - len(words) / 2) <= 1
        elif after.noise == "mangled":
            # Some of its words are still there, among them such that stood there; others are gone, repeated, moved or foreign.
            assert set(words) & set(left) or len(words) < 4


def test_noise_is_a_function_of_its_seed_and_the_pairs_number():
    clean = clean_pairs(300)
    assert noise().spoil(clean) == noise().spoil(clean)
    assert [pair.noise for pair in noise().spoil(clean[:200])] == [pair.noise for pair in noise().spoil(clean)[:200]]
    marks = [[pair.noise for pair in noise(seed=seed).spoil(clean)] for seed in (0, 1)]
    assert marks[0] != marks[1]


def test_a_kind_can_be_everything_or_nothing():
    clean = clean_pairs(100)
    assert {pair.noise for pair in noise(ratios={"copied": 1.0}).spoil(clean)} == {"copied"}
    assert noise(ratios={}).spoil(clean) == clean
    # More of the words broken, fewer of them left where they were.
    kept = [
        np.mean([after.target.split()[0] == before.target.split()[0] for before, after in zip(clean, spoilt, strict=True)])
        for spoilt in (noise(ratios={"mangled": 1.0}, mangled_ratio=ratio).spoil(clean) for ratio in (0.1, 0.9))
    ]
    assert kept[0] > kept[1] + 0.3


def test_a_target_that_cannot_be_truncated_stays_good():
    clean = [Pair("a", "x y", "l"), Pair("b", "z", "long")]
    spoilt = noise(ratios={"truncated": 1.0}).spoil(clean)
    assert [(pair.target, pair.noise) for pair in spoilt] == [("l", None), ("lo", "truncated")]


def test_noise_needs_something_to_be_made_of():
    with pytest.raises(UserError, match="two different sentences on each side"):
        noise().spoil([Pair("a", "x", "y"), Pair("b", "x", "z")])


# --- filters


@pytest.mark.parametrize(
    ("rule", "passed"),
    [
        (Duplicates(of="pair"), [True, False, True, True, True]),
        (Duplicates(of="source"), [True, False, False, True, True]),
        (Duplicates(of="target"), [True, False, True, False, True]),
        (Duplicates(of="either"), [True, False, False, False, True]),
    ],
)
def test_duplicates_of_better_pairs_are_dropped(rule, passed):
    pairs = [("One, two.", "eins zwei"), ("one  TWO", "Eins zwei!"), ("one two", "vier"), ("three", "eins zwei"), ("two one", "x")]
    assert rule.passes(pairs) == passed


def test_what_is_dropped_is_no_reason_to_drop_another():
    # The second shares a side with the first and is dropped; the third shares its other side only with the second.
    assert Duplicates(of="either").passes([("a", "x"), ("a", "y"), ("b", "y")]) == [True, False, True]
    assert Duplicates(of="source").passes([("!", "x"), ("?", "x"), ("?", "y")]) == [True, True, False]


def test_length_ratio():
    pairs = [("a b c", "d"), ("a b c d", "e"), ("aaaa", "b"), ("aaa", "b")]
    assert LengthRatio(unit="words", max_ratio=3).passes(pairs) == [True, False, True, True]
    assert LengthRatio(unit="characters", max_ratio=3).passes(pairs) == [False, False, False, True]


def test_copy_overlap():
    pairs = [
        ("the same words", "The same, words!"),
        ("in Paris today", "à Paris aujourd'hui"),
        ("Paris", "Paris Paris est"),
        ("a", "b"),
    ]
    assert CopyOverlap(max_ratio=0.6).passes(pairs) == [False, True, False, True]
    assert CopyOverlap(max_ratio=0.3).passes(pairs) == [False, False, False, True]
    assert CopyOverlap(max_ratio=1.0).passes(pairs) == [True] * 4


def test_scripts():
    pairs = [("abc 12", "ქარი, 3."), ("abc", "abc"), ("ქარი", "ქარი"), ("abc", "ქარი a"), ("12", "!")]
    assert Scripts(scripts=("latin", "georgian"), min_ratio=0.7).passes(pairs) == [True, False, False, True, True]
    assert Scripts(scripts=("latin", "georgian"), min_ratio=0.9).passes(pairs) == [True, False, False, False, True]


def test_languages():
    pytest.importorskip("py3langid")
    english, german = "This is a sentence of the English language.", "Dies ist ein Satz in der deutschen Sprache."
    rule = Languages(languages=("en", "de"))
    assert rule.passes([(english, german), (german, english), (english, english)]) == [True, False, False]


def test_unknown_languages_and_the_missing_package_are_told_at_their_place(monkeypatch):
    node = {"_target_": RULES + "Languages", "languages": ["en", "sinhala"]}
    settings = {**SETTINGS, "filters": {"languages": node}}
    pytest.importorskip("py3langid")
    (problem,) = problems_of(settings, "task.curation", "task")
    assert problem.where == "task.curation.filters.languages.languages.1"
    assert "'sinhala' is none of" in problem.message
    monkeypatch.setitem(sys.modules, "py3langid", None)
    (problem,) = problems_of(settings, "task.curation", "task")
    assert problem.where == "task.curation.filters.languages.languages"
    assert "pip install 'mlmx[langid]'" in problem.message


# --- the task


def test_bad_settings_are_told_at_their_place():
    filters = {
        "length_ratio": {"_target_": RULES + "LengthRatio", "unit": "word", "max_ratio": 0.5},
        "copy_overlap": {"_target_": RULES + "CopyOverlap", "max_ratio": 2},
    }
    wrong = {**SETTINGS, "score": "ratios", "num_neighbors": 0, "filters": filters, "noise": {**NOISE, "seed": -1}, "depth": 3}
    places = {problem.where.partition(".literal")[0] for problem in problems_of(wrong, "task.curation", "task")}
    assert places == {
        "task.curation.score",
        "task.curation.num_neighbors",
        "task.curation.noise.seed",
        "task.curation.depth",
        "task.curation.filters.length_ratio.unit",
        "task.curation.filters.copy_overlap.max_ratio",
    }


@pytest.mark.parametrize(
    ("settings", "where", "message"),
    [
        ({"corpus": {**CORPUS, "view": "monolingual"}}, "corpus", "what is curated are pairs of sentences in two languages"),
        ({"noise": None}, "precision_at", "has no effect without noise"),
        ({"noise": {**NOISE, "ratios": {"copied": 0.6, "mangled": 0.6}}}, "noise.ratios", "add up to 1.2"),
        ({"noise": {**NOISE, "ratios": {"copied": 0.6, "mangeld": 0.1}}}, "noise.ratios.mangeld", "is not valid"),
        (
            {"filters": {"long": {"_target_": RULES + "LengthRatio", "unit": "words", "max_ratio": 0.5}}},
            "filters.long.max_ratio",
            "less than 1",
        ),
    ],
)
def test_settings_that_contradict_each_other(settings, where, message):
    problems = problems_of({**SETTINGS, **settings}, "task.curation", "task")
    (problem,) = [problem for problem in problems if problem.where.startswith(f"task.curation.{where}")]
    assert message in problem.message


def test_auc_is_that_of_sklearn_and_precision_at_k_is_counted():
    built = task(precision_at=[3, 5], num_kept=4)
    kinds = [None, "shuffled", None, None, "copied", None, "shuffled", None]
    pairs = [Pair(f"p:{i}", f"s{i}", f"t{i}", kind) for i, kind in enumerate(kinds)]
    scores = np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], np.float32)
    curated = built.choose(pairs, scores)
    evaluation = built.judge(curated, {"layer": 2})
    good = np.array([kind is None for kind in kinds])
    without = {kind: np.array([one in (None, kind) for one in kinds]) for kind in ("shuffled", "copied")}
    # The three best are good, bad, good: of the two with 0.8, the first in the corpus goes first.
    assert values(evaluation) == pytest.approx(
        {
            "auc": roc_auc_score(good, scores),
            **{f"auc_{kind}": roc_auc_score(good[chosen], scores[chosen]) for kind, chosen in without.items()},
            "precision_at_3": 2 / 3,
            "precision_at_5": 3 / 5,
            "kept_precision": 3 / 4,
            "kept_recall": 3 / 5,
        },
        abs=1e-6,
    )
    # By hand: how often each good pair beats each bad one; a tie is half a win.
    won = np.array([[1.0, 1, 1], [0.5, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]])
    assert values(evaluation)["auc"] == pytest.approx(won.mean())
    assert {score.settings["layer"] for score in evaluation.scores} == {2}
    trivial = {score.metric: score.trivial for score in evaluation.scores}
    assert (trivial["auc"], trivial["precision_at_3"], trivial["kept_recall"]) == (0.5, 5 / 8, 4 / 8)
    assert [record["kept"] for record in evaluation.predictions] == [True] * 4 + [False] * 4


def test_scores_are_those_of_the_embeddings(make_encoder):
    pairs = [("a b c", "c b a"), ("d e", "a b"), ("a b c", "d e"), ("e a", "b d")]
    encoder = make_encoder(list("abcde"))
    by_score = {
        score: [
            record["score"]
            for record in task(corpus=Pairs(pairs), noise=None, precision_at=[], score=score, num_neighbors=2)
            .evaluate(encoder)
            .predictions
        ]
        for score in ("cosine", "ratio", "distance")
    }
    embedding = task().embedding.resolved(encoder, task="curation")
    vectors = {
        text: normalised(embedding.vectors(encoder, [text], task="t", what="w", batch_tokens=64))[0]
        for pair in pairs
        for text in pair
    }
    sides = [list(dict.fromkeys(side)) for side in zip(*pairs, strict=True)]
    cosines = np.array([[vectors[source] @ vectors[target] for target in sides[1]] for source in sides[0]])
    # The repeated source is one neighbour.
    assert cosines.shape == (3, 4)
    means = [np.sort(cosines, axis=axis).take([-1, -2], axis).mean(axis) for axis in (1, 0)]
    for i, (source, target) in enumerate(pairs):
        row, column = sides[0].index(source), sides[1].index(target)
        middle = (means[0][row] + means[1][column]) / 2
        expected = {
            "cosine": cosines[row, column],
            "ratio": cosines[row, column] / middle,
            "distance": cosines[row, column] - middle,
        }
        for score, value in expected.items():
            assert by_score[score][i] == pytest.approx(value, abs=1e-5)


def test_random_scores_find_nothing(make_encoder):
    corpus = MicroworldCorpus(seed=0, num_pairs=4000, split="dev", view="parallel", languages=["qla", "qka"])
    evaluation = task(corpus=corpus, score="random", precision_at=[2000]).evaluate(make_encoder(["a"]))
    got = values(evaluation)
    # Standard error of the AUC of 2,000 and 2,000: sqrt((n + m + 1) / (12 n m)) = 0.009.
    assert got["auc"] == pytest.approx(0.5, abs=0.04)
    assert got["precision_at_2000"] == pytest.approx(0.5, abs=0.05)
    assert {score.metric for score in evaluation.scores} >= {f"auc_{kind}" for kind in KINDS}
    assert all(score.settings == {} for score in evaluation.scores)


def test_a_copy_is_what_any_encoder_likes_best_and_a_filter_drops(make_encoder):
    words = [f"w{i}" for i in range(60)]
    pairs = [(f"{words[i]} {words[(7 * i) % 60]}", f"{words[(11 * i + 1) % 60]} {words[(13 * i + 5) % 60]}") for i in range(60)]
    encoder = make_encoder(words)
    copies = {**NOISE, "ratios": {"copied": 0.5}}
    settings = {"corpus": Pairs(pairs), "noise": copies, "precision_at": [10]}
    overlap = {"_target_": RULES + "CopyOverlap", "max_ratio": 0.6}
    plain, filtered = (task(filters=filters, **settings).evaluate(encoder) for filters in ({}, {"copies": overlap}))
    assert values(plain)["auc_copied"] < 0.1
    assert values(plain)["precision_at_10"] == values(filtered)["precision_at_10"] == 0  # before any filter
    assert values(filtered)["kept_precision"] == 1
    assert not any(record["kept"] for record in filtered.predictions if record["noise"] == "copied")


def test_kept_pairs_are_read_again_and_counted(make_encoder, tmp_path, caplog):
    pairs = [("a b", "d\te "), ('a "b', "d e"), ("a b", "d e"), ("c", "e"), ("a a a a", "d")]
    filters = {
        "none": None,
        "duplicates": {"_target_": RULES + "Duplicates", "of": "pair"},
        "length": {"_target_": RULES + "LengthRatio", "unit": "words", "max_ratio": 3},
    }
    built = task(corpus=Pairs(pairs), noise=None, precision_at=[], filters=filters, num_kept=5)
    built.folder = tmp_path
    with caplog.at_level(logging.WARNING):
        evaluation = built.evaluate(make_encoder(list("abcde")))
    assert evaluation.scores == []
    assert [len(record) for record in evaluation.predictions] == [5] * 5
    kept = tmp_path / "data" / "kept.tsv"
    read = ParallelCorpus(path=str(kept), format="auto", columns=None, header=True, languages=["aa", "bb"])
    # The second of two equal pairs, spaces apart, and the long one are dropped; quotation marks and case are no difference.
    assert sorted(tuple(segment.text for segment in example.segments) for example in read.examples()) == [
        ("a b", "d e"),
        ("c", "e"),
    ]
    scores = [float(line.split("\t")[2]) for line in kept.read_text().splitlines()[1:]]
    assert scores == sorted(scores, reverse=True)
    counts = json.loads((tmp_path / "data" / "counts.json").read_text())
    assert counts == {"pairs": 5, "dropped": {"duplicates": 2, "length": 1}, "kept": 2}
    assert "filter duplicates drops 2 of 5 pairs" in caplog.text
    assert "only 2 pairs are left to keep, not num_kept=5" in caplog.text
    assert "2 pairs skipped: blank" in caplog.text


def test_the_best_are_kept():
    built = task(num_kept=3)
    pairs = [Pair(f"p:{i}", f"s{i}", f"t{i}") for i in range(5)]
    assert built.choose(pairs, np.array([1, 5, 3, 4, 2], np.float32)).kept.tolist() == [1, 3, 2]


def test_corpora_without_enough_pairs(make_encoder):
    encoder = make_encoder(["a"])
    with pytest.raises(UserError, match=r"task.curation.corpus: holds no pair"):
        task(corpus=Pairs([]), noise=None, precision_at=[]).evaluate(encoder)
    with pytest.raises(UserError, match=r"task.curation.precision_at: 100 is more than the 2 pairs"):
        task(corpus=Pairs([("a", "b"), ("c", "d")])).evaluate(encoder)
    everything = {"copies": {"_target_": RULES + "CopyOverlap", "max_ratio": 0.0}}
    with pytest.raises(UserError, match=r"task.curation.filters: drop all of the 1 pairs: \{'copies': 1\}"):
        task(corpus=Pairs([("a", "a")]), noise=None, precision_at=[], filters=everything).evaluate(encoder)
