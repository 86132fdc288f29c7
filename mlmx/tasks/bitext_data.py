"""What bitext mining is judged on: two collections of sentences and the pairs that translate each other."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlmx.build import NonNegative, Positive
from mlmx.data.corpus import Corpus
from mlmx.errors import user_error
from mlmx.tasks.table_files import read_columns

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningSet:
    """Sentences of two languages, each text once, and the gold pairs.

    Attributes:
        source: the sentences of the first language, no text twice.
        target: the sentences of the second language, no text twice.
        source_ids: a name for each source sentence.
        target_ids: a name for each target sentence.
        gold: (source, target) indices of the pairs known to translate each other; a sentence may be in several.
        gold_complete: whether every translation among the sentences is in ``gold``. If not, a mined pair of which neither
            sentence is in ``gold`` is neither right nor wrong.
        split: the name of this data, such as ``test``.
    """

    source: Sequence[str]
    target: Sequence[str]
    source_ids: Sequence[str]
    target_ids: Sequence[str]
    gold: frozenset[tuple[int, int]]
    gold_complete: bool
    split: str


class BitextData(ABC):
    """A source of a :class:`MiningSet`. Settings are keyword-only parameters of the constructor."""

    @abstractmethod
    def load(self) -> MiningSet:
        """Read or generate the sentences and gold pairs."""


class MicroworldBitext(BitextData):
    """Sentence pairs of the embedded microworld.

    Args:
        seed: of the world; that of the corpus, or its words mean something else.
        split: ``dev`` or ``test``; no corpus holds their events.
        num_pairs: how many.
    """

    def __init__(self, *, seed: NonNegative, split: Literal["dev", "test"], num_pairs: Positive) -> None:
        self.seed = seed
        self.split = split
        self.num_pairs = num_pairs

    def load(self) -> MiningSet:
        from mlmx.data.microworld import bitext_pairs

        return diagonal(bitext_pairs(seed=self.seed, split=self.split, num_pairs=self.num_pairs), split=self.split)


class ParallelBitext(BitextData):
    """The two sides of any parallel corpus; the pairs of its lines are the gold.

    Args:
        corpus: a parallel corpus.
        split: the name of this data in the scores.
        max_pairs: how many lines to use, from the first on; all if None.
    """

    def __init__(self, *, corpus: Corpus, split: str, max_pairs: Positive | None) -> None:
        if not corpus.parallel:
            raise user_error("task data.corpus", "bitext mining needs a parallel corpus, and this one is monolingual.")
        self.corpus = corpus
        self.split = split
        self.max_pairs = max_pairs

    def load(self) -> MiningSet:
        pairs: list[tuple[str, str]] = []
        for example in self.corpus.examples():
            if len(pairs) == self.max_pairs:
                break
            source, target = example.segments
            pairs.append((source.text, target.text))
        for reason, number in self.corpus.skipped.items():
            log.warning("%d lines skipped: %s", number, reason)
        return diagonal(pairs, split=self.split)


class BitextFiles(BitextData):
    """Two TSV files of sentences (id, text) and one of gold pairs (source id, target id), without headers.

    Args:
        source: the sentences of the first language.
        target: the sentences of the second language.
        gold: the pairs.
        gold_complete: False where only a sample of the pairs was annotated; see :class:`MiningSet`.
        split: the name of this data in the scores.
    """

    def __init__(self, *, source: Path, target: Path, gold: Path, gold_complete: bool, split: str) -> None:
        self.source = source
        self.target = target
        self.gold = gold
        self.gold_complete = gold_complete
        self.split = split

    def load(self) -> MiningSet:
        source_ids, source, source_index = _sentences(self.source)
        target_ids, target, target_index = _sentences(self.target)
        gold = set()
        missing = []
        for where, (source_id, target_id) in read_columns(self.gold, 2):
            if source_id in source_index and target_id in target_index:
                gold.add((source_index[source_id], target_index[target_id]))
            else:
                missing.append(where)
        if not gold:
            raise user_error(str(self.gold), f"none of its pairs has both ids in {self.source} and {self.target}.")
        if missing:
            log.warning("%d gold pairs name an id without a sentence and are left out; the first is %s", len(missing), missing[0])
        return MiningSet(
            source=source,
            target=target,
            source_ids=source_ids,
            target_ids=target_ids,
            gold=frozenset(gold),
            gold_complete=self.gold_complete,
            split=self.split,
        )


def diagonal(pairs: Iterable[tuple[str, str]], *, split: str) -> MiningSet:
    """Return pairs of texts as a bitext.

    A text that occurs several times on one side becomes one sentence, and each of its translations is gold: whichever is found is
    right. Otherwise a system would be judged by which of two equal sentences it happens to name.

    Raises:
        UserError: if there are no pairs.
    """
    pairs = list(pairs)
    if not pairs:
        raise user_error("task data", "there are no pairs to mine.")
    source, source_index = _distinct([source for source, _ in pairs])
    target, target_index = _distinct([target for _, target in pairs])
    if (repeated := 2 * len(pairs) - len(source) - len(target)) > 0:
        log.info("%d of %d sentences repeat another one of their side; equal sentences count as one", repeated, 2 * len(pairs))
    return MiningSet(
        source=source,
        target=target,
        source_ids=[str(i) for i in range(len(source))],
        target_ids=[str(i) for i in range(len(target))],
        gold=frozenset(zip(source_index, target_index, strict=True)),
        gold_complete=True,
        split=split,
    )


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    # The distinct texts in the order they first occur, and the index of each text among them.
    index: dict[str, int] = {}
    positions = [index.setdefault(text, len(index)) for text in texts]
    return list(index), positions


def _sentences(path: Path) -> tuple[list[str], list[str], dict[str, int]]:
    # Names and texts of the distinct sentences, and id -> index among them.
    text_of: dict[str, str] = {}
    num_blank = 0
    for where, (sentence_id, text) in read_columns(path, 2):
        if not text.strip():
            num_blank += 1
        elif sentence_id in text_of:
            raise user_error(where, f"the id {sentence_id!r} occurs twice.")
        else:
            text_of[sentence_id] = text
    if not text_of:
        raise user_error(str(path), "holds no sentence.")
    if num_blank:
        log.warning("%s: %d lines without text skipped", path, num_blank)
    distinct, index = _distinct(list(text_of.values()))
    if len(distinct) < len(text_of):
        log.info("%s: %d sentences repeat another one and count as one with it", path, len(text_of) - len(distinct))
    index_of = dict(zip(text_of, index, strict=True))
    first_id = {position: sentence_id for sentence_id, position in reversed(index_of.items())}
    return [first_id[i] for i in range(len(distinct))], distinct, index_of
