"""Tagging words: parts of speech or named entities."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from mlmx.tasks.task import Evaluation, Task, ratio_scores
from mlmx.tasks.texts import check_max_length
from mlmx.tasks.token_classification import TokenClassification, predict_words

log = logging.getLogger(__name__)

_ENTITY_TAG = re.compile(r"O|[BI]-.+")


@dataclass(frozen=True, slots=True)
class Tagged:
    """A sentence: where it comes from, its words and a tag for each."""

    where: str
    words: Sequence[str]
    tags: Sequence[str]


class Tagging(Task):
    """Part-of-speech or named-entity tagging by fine-tuning: accuracy over words, and strict F1 of entities.

    An entity is found where its first word, last word and class are right; an ``I-`` tag that continues nothing begins an entity,
    as in the evaluation of CoNLL-2003. The export is a token-classification checkpoint with the tags as label names, which
    ``annotator=hf`` uses.

    Args:
        name: the task's name.
        layer: ``pos`` or ``entity``: which gold tags of the corpora are learnt.
        corpora: split -> tagged sentences. ``train`` is fine-tuned on, all others are judged.
        max_length: tokens of a row, special ones included; longer sentences are cut into windows at words, so that none is lost.
        batch_tokens: tokens per forward when judging.
    """

    def __init__(
        self,
        *,
        name: str,
        layer: Literal["pos", "entity"],
        corpora: Mapping[str, Corpus],
        max_length: Positive,
        batch_tokens: Positive,
    ) -> None:
        self.name = name
        self.layer: Literal["pos", "entity"] = layer
        if "train" not in corpora or len(corpora) < 2:
            message = (
                f"names the tagged sentences of each split; train and one to judge by are needed, given: {', '.join(corpora)}."
            )
            raise user_error(f"task.{name}.corpora", message)
        self.corpora = corpora
        self.max_length = max_length
        self.batch_tokens = batch_tokens

    def objective(self, encoder: Encoder) -> Objective:
        return TokenClassification(encoder, labels=self.labels)

    def training_rows(self, encoder: Encoder) -> RowDataset:
        return self._rows(encoder, self._training_sentences, "train")

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        assert isinstance(model, TokenClassification)
        records: list[dict[str, Any]] = []
        for split in self.corpora:
            if split != "train":
                sentences = self._sentences(split)
                rows = self._rows(model.encoder, sentences, split)
                predictions = predict_words(model, rows, batch_tokens=self.batch_tokens)
                records += self._records(sentences, predictions, split)
        return Evaluation(scores=ratio_scores(records, task=self.name), predictions=records)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The tags of the training sentences, sorted; a class is an index into them."""
        return tuple(sorted({tag for sentence in self._training_sentences for tag in sentence.tags}))

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
                words = [segment.text[start:end] for start, end in segment.words]
                tags = segment.tags[self.layer]
                if self.layer == "entity" and (bad := [tag for tag in tags if not _ENTITY_TAG.fullmatch(tag)]):
                    raise user_error(where, f"{example.where}: {bad[0]!r} is no entity tag; O, B-X and I-X are.")
                sentences.append(Tagged(example.where, words, tags))
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
            log.warning("%s: tags of split %s that never occur in training: %s", self.name, split, dict(unseen))
        labels = [[index.get(tag, IGNORED) for tag in sentence.tags] for sentence in sentences]
        words = [sentence.words for sentence in sentences]
        rows = WordRows(words, encoder.tokenizer, encoder.vocabulary, self.max_length, labels)
        if rows.num_lost_labels:
            message = "%s: %d words of split %s have no pieces in this tokenizer; they cannot be learnt, and count as untagged"
            log.warning(message, self.name, rows.num_lost_labels, split)
        return rows

    def _records(self, sentences: Sequence[Tagged], predictions: Sequence[dict[int, int]], split: str) -> list[dict[str, Any]]:
        # One record per sentence; a word without pieces is in no entity, and has no part of speech.
        untagged = "O" if self.layer == "entity" else ""
        records = []
        for number, (sentence, found) in enumerate(zip(sentences, predictions, strict=True)):
            predicted = [self.labels[found[i]] if i in found else untagged for i in range(len(sentence.words))]
            num_right = sum(gold == tag for gold, tag in zip(sentence.tags, predicted, strict=True))
            ratios: dict[str, list[int]] = {"token_accuracy": [num_right, len(predicted)]}
            if self.layer == "entity":
                num_hits, num_found, num_gold = strict_entities(sentence.tags, predicted)
                ratios |= {
                    "entity_precision": [num_hits, num_found],
                    "entity_recall": [num_hits, num_gold],
                    "entity_f1": [2 * num_hits, num_found + num_gold],
                }
            records.append({"id": str(number), "where": sentence.where, "split": split, "predicted": predicted, "ratios": ratios})
        return records


def strict_entities(gold: Sequence[str], predicted: Sequence[str]) -> tuple[int, int, int]:
    """Count the entities of a sentence: those found with class and both ends right, those predicted, and those in the gold."""
    gold_entities, found = (set(entities) for entities in ListLoader().load([list(gold), list(predicted)]))
    return len(gold_entities & found), len(found), len(gold_entities)
