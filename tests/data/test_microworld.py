"""The microworld keeps what it promises: the same numbers for ever, gold labels that agree, no task that counting words solves."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from mlmx.data.corpus import Example
from mlmx.data.microworld import Concept, MicroworldCorpus, World, align, bitext_pairs, render, render_mixed, sentiment_examples
from mlmx.data.microworld.event import valence
from mlmx.data.microworld.lexicon import LANGUAGES, LATIN, SIZES
from mlmx.errors import UserError

SETTINGS: dict[str, Any] = {"seed": 0, "num_pairs": 2000, "split": "train", "view": "parallel", "languages": ["qla", "qka"]}


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def pairs() -> list[Example]:
    return list(MicroworldCorpus(**SETTINGS).examples())


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def test_the_numbers_of_version_1_never_move(pairs: list[Example]) -> None:
    # Whoever changes one raises `_version_` in conf/corpus/microworld.yaml (and of the tasks) and says so in the CHANGELOG.
    assert digest(pairs[:200]) == "2e7e5d29d2c0ec3d"
    assert digest(bitext_pairs(seed=0, split="test", num_pairs=100)) == "922e26a65e43a10e"
    assert digest(sentiment_examples(seed=0, split="test", num_examples=100, code_mixed=True)) == "c50413851fea2733"


def test_an_event_depends_on_seed_and_number_only(world: World) -> None:
    events = list(islice(world.events("train"), 1500))  # more than one chunk
    assert [event.index for event in events] == sorted({event.index for event in events})
    assert all(World(0).event(event.index) == event for event in events[::300])
    assert World(1).event(0) != world.event(0)
    assert render(world.event(0), LATIN, World(1).lexicon).text != render(world.event(0), LATIN, world.lexicon).text


def test_the_views_tell_the_same_sentences(pairs: list[Example]) -> None:
    corpus = MicroworldCorpus(**{**SETTINGS, "num_pairs": 50, "view": "monolingual"})
    single = list(corpus.examples())
    assert [example.segments[0] for example in single] == [segment for pair in pairs[:50] for segment in pair.segments]
    assert (len(corpus), corpus.parallel, corpus.languages) == (100, False, ("qla", "qka"))
    swapped = MicroworldCorpus(**{**SETTINGS, "num_pairs": 50, "languages": ["qka", "qla"]})
    assert [example.segments[::-1] for example in swapped.examples()] == [pair.segments for pair in pairs[:50]]


def test_code_mixed_sentences_tell_the_language_of_each_words_stem(world: World) -> None:
    corpus = MicroworldCorpus(**{**SETTINGS, "num_pairs": 300, "view": "code_mixed"})
    segments = [example.segments[0] for example in corpus.examples()]
    assert (len(corpus), corpus.parallel, len(segments)) == (300, False, 300)
    assert [segment.language for segment in segments[:4]] == ["qla", "qka", "qla", "qka"]
    found: Counter[tuple[str, str]] = Counter()
    for segment in segments:
        assert segment.words is not None
        for (start, end), pos, language in zip(segment.words, segment.tags["pos"], segment.tags["language"], strict=True):
            word = segment.text[start:end]
            assert (language == "other") == (pos in ("NUM", "PUNCT")) == (not word[0].isalpha())
            if language != "other":
                # A stem is written in the letters of its language, whatever ending the sentence gives it.
                assert language == ("qla" if word[0].isascii() else "qka"), word
                found["own" if language == segment.language else "borrowed", pos] += 1
    assert found["borrowed", "PROPN"] == 0 < found["own", "PROPN"]
    assert 0.3 < found["borrowed", "VERB"] / (found["borrowed", "VERB"] + found["own", "VERB"]) < 0.5


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(UserError) as raised:
        MicroworldCorpus(seed=0, num_pairs=0, split="trian", view="paralel", languages=["qla", "en"])
    assert {problem.where for problem in raised.value.problems} == {
        f"corpus.{x}" for x in ("num_pairs", "split", "view", "languages")
    }
    with pytest.raises(UserError, match="languages"):
        MicroworldCorpus(**{**SETTINGS, "languages": ["qla"]})


def test_no_event_or_sentence_is_in_two_splits(world: World) -> None:
    told = {
        split: {
            render(event, language, world.lexicon).text for event in islice(world.events(split), 1500) for language in LANGUAGES
        }
        for split in ("train", "dev", "test")
    }
    assert not told["train"] & told["test"]
    assert not told["train"] & told["dev"]
    assert not told["dev"] & told["test"]
    shares = Counter(world.split(index) for index in range(500))
    assert 0.85 < shares["train"] / 500 < 0.95
    assert all(world.split(event.index) == "test" for event in islice(world.events("test"), 20))


def test_sentences_are_short_and_the_words_are_where_they_are_said_to_be(pairs: list[Example]) -> None:
    for segment in (segment for pair in pairs for segment in pair.segments):
        assert segment.words is not None
        words = [segment.text[start:end] for start, end in segment.words]
        assert 4 <= len(words) <= 14
        assert re.findall(r"[^\s.]+|\.", segment.text) == words
        assert len(segment.tags["pos"]) == len(segment.tags["entity"]) == len(words)


def test_gold_tags_agree_with_the_words(pairs: list[Example]) -> None:
    spans: Counter[str] = Counter()
    for segment in (segment for pair in pairs for segment in pair.segments):
        previous = "O"
        for (start, end), pos, entity in zip(segment.words or (), segment.tags["pos"], segment.tags["entity"], strict=True):
            word = segment.text[start:end]
            assert (pos == "PROPN") == (entity != "O")
            assert (pos == "NUM") == word.isdigit()
            assert (pos == "PUNCT") == (word == ".")
            if segment.language == LATIN:
                assert word[0].isupper() == (pos == "PROPN")
            if entity.startswith("I-"):
                assert previous[2:] == entity[2:]
                spans["longer than a word"] += 1
            if entity.startswith("B-"):
                spans[entity[2:]] += 1
            previous = entity
    assert all(spans[kind] > 200 for kind in ("PER", "LOC", "ORG", "longer than a word"))


def test_the_two_sides_have_the_same_entities(pairs: list[Example]) -> None:
    for pair in pairs:
        left, right = (Counter(tag for tag in segment.tags["entity"] if tag != "O") for segment in pair.segments)
        assert left == right


def test_alignment_covers_every_word_and_pairs_a_concept_with_its_translation(world: World) -> None:
    crossed = 0
    for event in islice(world.events("train"), 500):
        left, right = (render(event, language, world.lexicon) for language in LANGUAGES)
        links = align(left, right)
        assert {i for i, _ in links} == set(range(len(left.words)))
        assert {j for _, j in links} == set(range(len(right.words)))
        assert align(right, left) == sorted((j, i) for i, j in links)
        roles = {(left.words[i].role, right.words[j].role) for i, j in links}
        assert all((word.role, word.role) in roles for word in left.words if word.pos in ("NOUN", "VERB", "ADJ", "PROPN", "NUM"))
        assert all(a.partition(".")[0] == b.partition(".")[0] for a, b in roles)
        crossed += any(i < k and j > m for i, j in links for k, m in links)
    assert crossed > 400  # the word orders differ


def test_the_languages_share_numbers_only(pairs: list[Example]) -> None:
    scripts = [Counter(char for pair in pairs for char in pair.segments[side].text if char.isalpha()) for side in (0, 1)]
    assert not scripts[0].keys() & scripts[1].keys()
    shared = [{*pair.segments[0].text.split()} & {*pair.segments[1].text.split()} for pair in pairs]
    assert 0.02 < np.mean([bool(words) for words in shared]) < 0.1
    # Mining by shared words: a guess among those that share as many.
    sides = [
        [{*text.rstrip(".").split()} for text in side]
        for side in zip(*bitext_pairs(seed=0, split="test", num_pairs=400), strict=True)
    ]
    overlap = np.array([[len(a & b) for b in sides[1]] for a in sides[0]])
    best = overlap == overlap.max(axis=1, keepdims=True)
    assert (np.diag(best) / best.sum(axis=1)).mean() < 0.06


def test_names_correspond_by_sound(world: World) -> None:
    vowels = dict(zip("აეიოუ", "aeiou", strict=True))
    for kind in ("person", "place"):
        for number in range(SIZES[kind]):
            left, right = (world.lexicon.stem(language, Concept(kind, number)) for language in LANGUAGES)
            sounds = [[char for char in word.lower() if char in "aeiou"] for word in left]
            assert sounds == [[vowels[char] for char in word if char in vowels] for word in right]


def test_frequencies_follow_zipf(world: World) -> None:
    counts = Counter(
        concept
        for event in islice(world.events("train"), 8000)
        for concept in (event.action, event.agent.concept, event.patient.concept, event.manner, event.place)
        if concept
    )
    frequencies = np.array(sorted(counts.values(), reverse=True), float)[: len(counts) // 2]
    slope, _ = np.polyfit(np.log(np.arange(1, len(frequencies) + 1)), np.log(frequencies), 1)
    assert -1.3 < slope < -0.6
    assert sum(count <= 2 for count in counts.values()) > 20  # a long tail


def test_a_topic_foretells_its_words(world: World) -> None:
    by_topic: dict[int, Counter[int]] = {}
    for event in islice(world.events("train"), 8000):
        by_topic.setdefault(event.topic, Counter())[event.action.number] += 1
    overall = sum(by_topic.values(), Counter())

    def perplexity(counts: Counter[int]) -> float:
        share = np.array(list(counts.values())) / counts.total()
        return float(np.exp(-(share * np.log(share)).sum()))

    assert np.mean([perplexity(counts) for counts in by_topic.values()]) < 0.8 * perplexity(overall)


def test_word_forms_can_be_taken_apart_in_one_way_only(world: World) -> None:
    sentences: dict[str, object] = {}
    for event in islice(world.events("train"), 5000):
        for language in LANGUAGES:
            meaning = replace(event, index=0, topic=0)
            told = sentences.setdefault(render(event, language, world.lexicon).text, meaning)
            same = (told.action, told.agent.concept, told.patient.concept, told.negated, told.polarity)  # type: ignore[attr-defined]
            assert same == (event.action, event.agent.concept, event.patient.concept, event.negated, event.polarity)


def test_negation_and_contrast_flip_the_sentiment(world: World) -> None:
    judged = [event for event in islice(world.events("train"), 3000) if event.manner]
    for event in judged:
        assert event.manner is not None
        if event.contrast is None:
            assert event.polarity == -replace(event, negated=not event.negated).polarity
        else:
            assert event.polarity == -replace(event, contrast=None).polarity == valence(event.contrast)
        assert event.comment is None or valence(event.comment) == event.polarity
    assert 0.35 < np.mean([event.negated for event in judged]) < 0.45
    sample = next(event for event in judged if event.negated)
    for language in LANGUAGES:
        assert render(sample, language, world.lexicon) != render(replace(sample, negated=False), language, world.lexicon)


def test_mixing_borrows_stems_and_keeps_the_grammar(world: World) -> None:
    for event in islice(world.events("train"), 200):
        for language in LANGUAGES:
            plain = render(event, language, world.lexicon)
            assert render_mixed(event, language, world.lexicon, lambda role: False) == plain
            mixed = render_mixed(event, language, world.lexicon, lambda role: role == "action")
            assert [word.role for word in mixed.words] == [word.role for word in plain.words]
            assert [a.role for a, b in zip(mixed.words, plain.words, strict=True) if a != b] == ["action"]


@pytest.mark.parametrize("code_mixed", [False, True])
def test_counting_words_does_not_tell_the_sentiment(code_mixed: bool) -> None:
    texts, labels = sentiment_examples(seed=0, split="train", num_examples=4000, code_mixed=code_mixed)
    test_texts, test_labels = sentiment_examples(seed=0, split="test", num_examples=1000, code_mixed=code_mixed)
    assert not set(texts) & set(test_texts)
    assert 0.45 < np.mean([label == "positive" for label in test_labels]) < 0.55
    for ngrams in (1, 2):
        counts = CountVectorizer(token_pattern=r"[^\s.]+", ngram_range=(1, ngrams))
        model = LogisticRegression(C=0.3, max_iter=500).fit(counts.fit_transform(texts), labels)
        assert 0.52 < model.score(counts.transform(test_texts), test_labels) < 0.72
    mixed = [bool(re.search("[a-z]", text)) and bool(re.search("[ა-ჰ]", text)) for text in texts]
    assert (np.mean(mixed) > 0.8) if code_mixed else not any(mixed)


def test_generation_is_fast_and_flat(pairs: list[Example]) -> None:
    examples = MicroworldCorpus(**{**SETTINGS, "num_pairs": 10**12}).examples()
    assert next(examples) == pairs[0]  # nothing is built ahead
