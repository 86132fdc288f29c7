"""Tagging words: parts of speech, named entities, or languages."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from nervaluate.loaders import ListLoader

from mlmx.build import Positive
from mlmx.data.corpus import Corpus
from mlmx.data.rows import RowDataset
from mlmx.data.rows_from_text import IGNORED, WordRows
from mlmx.errors import user_error
from mlmx.models.encoder import Encoder
from mlmx.objectives.objective import Objective
from mlmx.tasks.task import Evaluation, Score, Task, ratio_scores
from mlmx.tasks.texts import check_max_length
from mlmx.tasks.token_classification import TokenClassification, predict_words

log = logging.getLogger(__name__)

UNSPECIFIED = "_"
"""Stands in CoNLL-U where nothing is said."""

Layer = Literal["pos", "entity", "language"]


@dataclass(frozen=True, slots=True)
class Tagged:
    """A sentence: where it comes from, its text, its words and a tag for each."""

    where: str
    text: str
    words: Sequence[str]
    tags: Sequence[str]


class Tagging(Task):
    """Tagging of parts of speech, named entities or languages: accuracy over words, strict F1 of entities, F1 of each language.

    An entity is found where its first word, last word and class are right; an ``I-`` tag that continues nothing begins an entity,
    as in the evaluation of CoNLL-2003. Whatever scheme the corpora write, tags are those of IOB2, token accuracy too. The trivial
    scores are those of a tagger that gives each word its most frequent tag of the training data, and a word it does not have the
    most frequent tag of all. The export is a token-classification checkpoint with the tags as label names, which ``annotator=hf``
    uses.

    Args:
        name: the task's name.
        layer: ``pos``, ``entity`` or ``language``: which gold tags of the corpora are learnt.
        corpora: split -> tagged sentences. ``train`` is fine-tuned on, all others are judged.
        max_length: tokens of a row, special ones included; longer sentences are cut into windows at words, so that none is lost.
        batch_tokens: tokens per forward when judging.
    """

    def __init__(
        self,
        *,
        name: str,
        layer: Layer,
        corpora: Mapping[str, Corpus],
        max_length: Positive,
        batch_tokens: Positive,
    ) -> None:
        self.name = name
        self.layer: Layer = layer
        if "train" not in corpora or len(corpora) < 2:
            message = (
                f"names the tagged sentences of each split; train and one to judge by are needed, given: {', '.join(corpora)}."
            )
            raise user_error(f"task.{name}.corpora", message)
        self.corpora = corpora
        self.max_length = max_length
        self.batch_tokens = batch_tokens

    def check_data(self) -> None:
        self._check_tags()
        for split in self.corpora:
            if split != "train":
                self._sentences(split)

    def objective(self, encoder: Encoder) -> Objective:
        return TokenClassification(encoder, labels=self.labels)

    def training_rows(self, encoder: Encoder) -> RowDataset:
        self._check_tags()
        return self._rows(encoder, self._training_sentences, "train")

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        assert isinstance(model, TokenClassification)
        records: list[dict[str, Any]] = []
        trivial: list[dict[str, Any]] = []
        tag_of = most_frequent_tags(self._training_sentences)
        for split in self.corpora:
            if split != "train":
                sentences = self._sentences(split)
                rows = self._rows(model.encoder, sentences, split)
                predictions = predict_words(model, rows, batch_tokens=self.batch_tokens)
                records += self._records(sentences, self._tags(sentences, predictions), split)
                trivial += self._records(sentences, [[tag_of[word] for word in one.words] for one in sentences], split)
        return Evaluation(scores=self._scores(records, trivial), predictions=records)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The tags of the training sentences, sorted; a class is an index into them."""
        return tuple(sorted({tag for sentence in self._training_sentences for tag in sentence.tags}))

    def _check_tags(self) -> None:
        if len(self.labels) < 2:
            message = f"the training sentences hold only the tag {self.labels[0]!r}; two at least are needed."
            raise user_error(f"task.{self.name}.corpora.train", message)

    @cached_property
    def _training_sentences(self) -> list[Tagged]:
        return self._sentences("train")

    def _sentences(self, split: str) -> list[Tagged]:
        where = f"task.{self.name}.corpora.{split}"
        corpus = self.corpora[split]
        sentences = []
        for example in corpus.examples():
            for segment in example.segments:
                if segment.words is None or self.layer not in segment.tags:
                    raise user_error(where, f"{example.where} has no gold tags of layer {self.layer!r}.")
                if self.layer == "pos" and UNSPECIFIED in segment.tags["pos"]:
                    raise user_error(where, f"{example.where} has words without a part of speech ({UNSPECIFIED!r}).")
                words = [segment.text[start:end] for start, end in segment.words]
                sentences.append(Tagged(example.where, segment.text, words, segment.tags[self.layer]))
        for reason, number in corpus.skipped.items():
            log.warning("%s: %d sentences of split %s skipped: %s", self.name, number, split, reason)
        if not sentences:
            raise user_error(where, "holds no sentence.")
        return sentences

    def _rows(self, encoder: Encoder, sentences: Sequence[Tagged], split: str) -> WordRows:
        check_max_length(encoder, self.max_length, task=self.name)
        index = {label: i for i, label in enumerate(self.labels)}
        unseen = Counter(tag for sentence in sentences for tag in sentence.tags if tag not in index)
        if unseen:
            first = next(sentence.where for sentence in sentences if unseen.keys() & set(sentence.tags))
            message = (
                "%s: tags of split %s that never occur in training, so that they count as wrong: %s; first in the sentence at %s"
            )
            log.warning(message, self.name, split, dict(unseen), first)
        there = {tag for sentence in sentences for tag in sentence.tags}
        if absent := [label for label in self.labels if label not in there]:
            log.warning("%s: tags of training that do not occur in split %s: %s", self.name, split, ", ".join(absent))
        labels = [[index.get(tag, IGNORED) for tag in sentence.tags] for sentence in sentences]
        words = [sentence.words for sentence in sentences]
        rows = WordRows(words, encoder.tokenizer, encoder.vocabulary, self.max_length, labels)
        if rows.num_lost_labels:
            message = "%s: %d words of split %s have no pieces in this tokenizer; they cannot be learnt, and count as untagged"
            log.warning(message, self.name, rows.num_lost_labels, split)
        return rows

    def _tags(self, sentences: Sequence[Tagged], predictions: Sequence[dict[int, int]]) -> list[list[str]]:
        # A word without pieces is in no entity, and has no part of speech and no language.
        untagged = "O" if self.layer == "entity" else ""
        return [
            [self.labels[found[i]] if i in found else untagged for i in range(len(sentence.words))]
            for sentence, found in zip(sentences, predictions, strict=True)
        ]

    def _records(self, sentences: Sequence[Tagged], tags: Sequence[Sequence[str]], split: str) -> list[dict[str, Any]]:
        # One record per sentence.
        records = []
        for number, (sentence, predicted) in enumerate(zip(sentences, tags, strict=True)):
            num_right = sum(gold == tag for gold, tag in zip(sentence.tags, predicted, strict=True))
            ratios: dict[str, list[int]] = {"token_accuracy": [num_right, len(predicted)]}
            if self.layer == "entity":
                num_hits, num_found, num_gold = strict_entities(sentence.tags, predicted)
                ratios |= {
                    "entity_precision": [num_hits, num_found],
                    "entity_recall": [num_hits, num_gold],
                    "entity_f1": [2 * num_hits, num_found + num_gold],
                }
            if self.layer == "language":
                ratios |= tag_ratios(sentence.tags, predicted, self.labels)
            record = {"id": str(number), "where": sentence.where, "split": split, "predicted": predicted}
            records.append({**record, "ratios": ratios, "texts": [sentence.text]})
        return records

    def _scores(self, records: Sequence[Mapping[str, Any]], trivial: Sequence[Mapping[str, Any]]) -> list[Score]:
        pairs = zip(ratio_scores(records, task=self.name), ratio_scores(trivial, task=self.name), strict=True)
        return [replace(score, trivial=without_looking.value) for score, without_looking in pairs]


def most_frequent_tags(sentences: Sequence[Tagged]) -> defaultdict[str, str]:
    """Return word -> its most frequent tag (the first of equals); of a word that does not occur, the most frequent tag of all."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            counts[word][tag] += 1
    ((commonest, _),) = Counter(tag for sentence in sentences for tag in sentence.tags).most_common(1)
    return defaultdict(lambda: commonest, {word: of_word.most_common(1)[0][0] for word, of_word in counts.items()})


def tag_ratios(gold: Sequence[str], predicted: Sequence[str], tags: Sequence[str]) -> dict[str, list[int]]:
    """Return what a sentence adds to precision, recall and F1 of each tag, for ``ratio_scores``."""
    ratios: dict[str, list[int]] = {}
    for tag in tags:
        num_hits = sum(one == other == tag for one, other in zip(gold, predicted, strict=True))
        num_found, num_gold = list(predicted).count(tag), list(gold).count(tag)
        ratios |= {
            f"{tag}_precision": [num_hits, num_found],
            f"{tag}_recall": [num_hits, num_gold],
            f"{tag}_f1": [2 * num_hits, num_found + num_gold],
        }
    return ratios


def strict_entities(gold: Sequence[str], predicted: Sequence[str]) -> tuple[int, int, int]:
    """Count the entities of a sentence: those found with class and both ends right, those predicted, and those in the gold."""
    gold_entities, found = (set(entities) for entities in ListLoader().load([list(gold), list(predicted)]))
    return len(gold_entities & found), len(found), len(gold_entities)
