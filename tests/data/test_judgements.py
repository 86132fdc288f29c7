"""What is judged in the microworld cannot be told by its words, and what the labels say is so."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import Any

import pytest
from scipy.sparse import csr_matrix, hstack
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from mlmx.data.microworld import (
    World,
    acceptability_examples,
    entailment_examples,
    paraphrase_examples,
    render,
    similarity_examples,
)
from mlmx.data.microworld.lexicon import LANGUAGES
from mlmx.tasks.sentence_data import MicroworldJudgements

GENERATORS: dict[str, Any] = {
    "acceptability": acceptability_examples,
    "paraphrase": paraphrase_examples,
    "entailment": entailment_examples,
    "similarity": similarity_examples,
}


def words(text: str) -> list[str]:
    return text.rstrip(".").split()


@pytest.fixture(scope="module")
def examples() -> dict[tuple[str, str], Any]:
    sizes = {"train": 1500, "test": 600}
    return {
        (name, split): make(seed=0, split=split, num_examples=size)
        for name, make in GENERATORS.items()
        for split, size in sizes.items()
    }


def bags(train: Any, test: Any) -> tuple[Any, Any, list[Any], list[Any]]:
    """The words of each side and, of pairs, how many are shared, and how long the sides are."""
    columns: tuple[list[Any], list[Any]] = ([], [])
    for side in range(len(train[0][0])):
        counts = CountVectorizer(token_pattern=r"[^\s.]+").fit([texts[side] for texts, _ in train])
        for column, some in zip(columns, (train, test), strict=True):
            column.append(counts.transform([texts[side] for texts, _ in some]))
    if len(train[0][0]) == 2:
        for column, some in zip(columns, (train, test), strict=True):
            pairs = [(words(first), words(second)) for (first, second), _ in some]
            column.append(csr_matrix([[len({*a} & {*b}), len(a), len(b), len(a) - len(b)] for a, b in pairs], dtype=float))
    return hstack(columns[0]).tocsr(), hstack(columns[1]).tocsr(), [gold for _, gold in train], [gold for _, gold in test]


@pytest.mark.parametrize("name", ["acceptability", "paraphrase", "entailment"])
def test_a_bag_of_words_is_at_chance(examples, name):
    train, test, gold, test_gold = bags(examples[name, "train"], examples[name, "test"])
    shares = [count / len(test_gold) for count in Counter(test_gold).values()]
    assert max(shares) - min(shares) < 0.1
    accuracy = LogisticRegression(C=0.3, max_iter=2000).fit(train, gold).score(test, test_gold)
    assert abs(accuracy - max(shares)) < 0.07  # three standard deviations of 600 guesses are 0.06


def test_a_bag_of_words_does_not_tell_similarity(examples):
    train, test, gold, test_gold = bags(examples["similarity", "train"], examples["similarity", "test"])
    assert set(test_gold) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
    assert abs(spearmanr(Ridge(alpha=10.0).fit(train, gold).predict(test), test_gold).statistic) < 0.16
    shared = [len({*words(first)} & {*words(second)}) for (first, second), _ in examples["similarity", "test"]]
    assert abs(spearmanr(shared, test_gold).statistic) < 0.16


@pytest.mark.parametrize("name", GENERATORS)
def test_the_numbers_of_version_1_never_move(examples, name):
    # Whoever changes one raises `_version_` in the task's YAML and says so in the CHANGELOG.
    assert (
        hashlib.sha256(repr(examples[name, "test"]).encode()).hexdigest()[:16]
        == {
            "acceptability": "5d51d88b70d01c7a",
            "paraphrase": "8566416f9809b10a",
            "entailment": "a0409a02463237c7",
            "similarity": "2cbc054791df013c",
        }[name]
    )


@pytest.mark.parametrize("name", GENERATORS)
def test_no_example_is_in_two_splits_and_few_are_there_twice(examples, name):
    train, test = ([texts for texts, _ in examples[name, split]] for split in ("train", "test"))
    assert not {*train} & {*test}
    assert len({*test}) > 0.98 * len(test)
    assert GENERATORS[name](seed=0, split="test", num_examples=20) == examples[name, "test"][:20]


def test_unacceptable_sentences_are_acceptable_ones_in_another_order(examples):
    world = World(0)
    events = world.events("test")
    for (text,), label in examples["acceptability", "test"][:200]:
        event = next(events)
        told = [render(event, language, world.lexicon).text for language in LANGUAGES]
        assert (text in told) == (label == "acceptable")
        assert sorted(words(text)) in [sorted(words(one)) for one in told]


@pytest.mark.parametrize("name", ["paraphrase", "entailment", "similarity"])
def test_the_sides_of_a_pair_are_in_different_languages(examples, name):
    for (first, second), _ in examples[name, "test"][:200]:
        assert any("a" <= char <= "z" for char in first) != any("a" <= char <= "z" for char in second)


def test_a_hypothesis_that_is_entailed_says_less_of_what_happened_and_more_of_what_did_not(examples):
    def negated(text: str) -> bool:
        return any(re.fullmatch(r"ne|.*უთ(და|ნე)?ც?", word) for word in words(text))

    found: Counter[tuple[str, bool, bool]] = Counter()
    for (premise, hypothesis), label in examples["entailment", "train"]:
        found[label, negated(premise), negated(hypothesis)] += 1
    assert found["entailment", True, False] + found["entailment", False, True] == 0
    assert found["contradiction", True, True] + found["contradiction", False, False] == 0
    assert min(found["neutral", a, b] for a in (True, False) for b in (True, False)) > 80


def test_they_are_data_of_tasks():
    data = MicroworldJudgements(judgement="entailment", seed=0, num_train=3, num_dev=2, num_test=4)
    assert [len(data.load(split)) for split in data.splits] == [3, 2, 4]
    assert {one.gold for one in data.load("test")} <= set(data.labels or ())
