"""What bitext mining is judged on: two collections of sentences and the pairs that translate each other."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mlmx.build import NonNegative, Positive
from mlmx.data.corpora.parallel import ParallelCorpus
from mlmx.data.corpora.records import Column
from mlmx.data.corpus import Corpus
from mlmx.data.text_files import find_files
from mlmx.errors import Problem, UserError, first_problems, nearest, user_error
from mlmx.tasks.table_files import read_columns

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningSet:
    """Sentences of two languages and the gold pairs.

    Attributes:
        source: the sentences of the first language.
        target: the sentences of the second language.
        source_ids: a name for each source sentence.
        target_ids: a name for each target sentence.
        gold: (source, target) indices of the pairs known to translate each other; a sentence may be in several.
        gold_complete: whether every translation among the sentences is in ``gold``. If not, a mined pair of which neither
            sentence is in ``gold`` is neither right nor wrong.
    """

    source: Sequence[str]
    target: Sequence[str]
    source_ids: Sequence[str]
    target_ids: Sequence[str]
    gold: frozenset[tuple[int, int]]
    gold_complete: bool

    def distinct(self) -> MiningSet:
        """Return it with each text of a side once.

        A text that occurs several times becomes one sentence, called as the first of them, and each of its translations is gold:
        whichever is found is right. Otherwise a system would be judged by which of two equal sentences it happens to name.
        """
        source, source_index, source_ids = _distinct(self.source, self.source_ids)
        target, target_index, target_ids = _distinct(self.target, self.target_ids)
        if repeated := len(self.source) + len(self.target) - len(source) - len(target):
            total = len(self.source) + len(self.target)
            log.info("%d of %d sentences repeat another one of their side; equal sentences count as one", repeated, total)
        return replace(
            self,
            source=source,
            target=target,
            source_ids=source_ids,
            target_ids=target_ids,
            gold=frozenset((source_index[i], target_index[j]) for i, j in self.gold),
        )


class BitextData(ABC):
    """A source of mining sets. Settings are keyword-only parameters of the constructor."""

    @abstractmethod
    def load(self) -> Mapping[str, MiningSet]:
        """Read or generate the sets: the name that a set's scores have as their split -> the set."""


class MicroworldBitext(BitextData):
    """Sentences of the embedded microworld, some or all of them in pairs.

    Args:
        seed: of the world; that of the corpus, or its words mean something else.
        split: ``dev`` or ``test``; no corpus holds their events.
        num_pairs: how many sentences of each side have a translation on the other.
        num_unpaired: how many sentences of each side have none.
    """

    def __init__(self, *, seed: NonNegative, split: Literal["dev", "test"], num_pairs: Positive, num_unpaired: NonNegative) -> None:
        self.seed = seed
        self.split = split
        self.num_pairs = num_pairs
        self.num_unpaired = num_unpaired

    def load(self) -> Mapping[str, MiningSet]:
        from mlmx.data.microworld import bitext_pairs

        pairs = bitext_pairs(seed=self.seed, split=self.split, num_pairs=self.num_pairs + 2 * self.num_unpaired)
        paired, first_half = pairs[: self.num_pairs], slice(self.num_pairs, self.num_pairs + self.num_unpaired)
        source = [source for source, _ in [*paired, *pairs[first_half]]]
        target = [target for _, target in [*paired, *pairs[first_half.stop :]]]
        return {self.split: _line_by_line(source, target, num_pairs=self.num_pairs)}


class ParallelBitext(BitextData):
    """The two sides of any parallel corpus; the pairs of its lines are the gold.

    Args:
        corpus: a parallel corpus.
        split: the name of this data in the scores.
        max_pairs: how many lines to use, from the first on; all if None.
    """

    def __init__(self, *, corpus: Corpus, split: str, max_pairs: Positive | None) -> None:
        if not corpus.parallel:
            raise user_error("task data.corpus", "bitext mining needs a parallel corpus, and this one has no pairs.")
        self.corpus = corpus
        self.split = split
        self.max_pairs = max_pairs

    def load(self) -> Mapping[str, MiningSet]:
        return {self.split: parallel_set(self.corpus, self.max_pairs)}


class ParallelSets(BitextData):
    """Several parallel corpora, such as one for each language: ``*`` in a file's name stands for the name of its set.

    Args:
        path: files of two columns, as one pattern with a ``*``: ``tatoeba/tatoeba.*-eng.tsv.gz``. Or two patterns, of the text
            files of each side, of which the second has one ``*``: ``[v1/tatoeba.*-eng.*, v1/tatoeba.*-eng.eng]`` is Tatoeba as
            LASER publishes it.
        columns: names or indices of the source and the target column; null for text files.
        header: whether the first line of a TSV file names the columns.
        languages: the sets to read, in this order; null: all there are.
    """

    def __init__(
        self, *, path: str | tuple[str, str], columns: tuple[Column, Column] | None, header: bool, languages: tuple[str, ...] | None
    ) -> None:
        self.patterns = [str(Path(pattern).expanduser()) for pattern in ((path,) if isinstance(path, str) else path)]
        if self.patterns[-1].count("*") != 1:
            raise user_error("task data.path", f"{self.patterns[-1]!r} needs one *, which stands for the name of a set.")
        if (columns is None) != (len(self.patterns) == 2):
            raise user_error("task data.columns", "are two for files of two columns, and null for two text files.")
        self.columns = columns
        self.header = header
        self.languages = languages

    def load(self) -> Mapping[str, MiningSet]:
        files = self._files()
        names = list(files) if self.languages is None else self.languages
        for name in names:
            if name not in files:
                message = f"{name!r} is none of {', '.join(files)}, the sets of {self.patterns[-1]}."
                raise user_error("task data.languages", message, nearest(name, files))
        return {name: parallel_set(self._corpus(files[name]), None) for name in names}

    def _files(self) -> dict[str, list[str]]:
        before, after = self.patterns[-1].split("*")
        found = [str(path) for path in find_files(self.patterns[-1], "task data.path")]
        names = [path[len(before) : len(path) - len(after)] for path in found]
        return {
            name: [*(pattern.replace("*", name) for pattern in self.patterns[:-1]), path]
            for name, path in zip(names, found, strict=True)
        }

    def _corpus(self, files: list[str]) -> ParallelCorpus:
        return ParallelCorpus(
            path=files[0] if self.columns is not None else files,
            format="auto" if self.columns is not None else "text",
            columns=None if self.columns is None else list(self.columns),
            header=self.header,
            languages=["source", "target"],
        )


class BitextFiles(BitextData):
    """Two TSV files of sentences (id, text) and one of gold pairs (source id, target id), without headers.

    Args:
        source: the sentences of the first language.
        target: the sentences of the second language.
        gold: the pairs.
        gold_complete: False where only a sample of the pairs was annotated; see :class:`MiningSet`. A pair that names a sentence
            there is not is then left out and counted; where the gold is complete, it is an error.
        split: the name of this data in the scores.
    """

    def __init__(self, *, source: Path, target: Path, gold: Path, gold_complete: bool, split: str) -> None:
        self.source = source
        self.target = target
        self.gold = gold
        self.gold_complete = gold_complete
        self.split = split

    def load(self) -> Mapping[str, MiningSet]:
        source, target = _sentences(self.source), _sentences(self.target)
        source_index, target_index = ({name: i for i, name in enumerate(side)} for side in (source, target))
        gold = set()
        missing: list[Problem] = []
        for where, (source_id, target_id) in read_columns(self.gold, 2):
            if "\t" in target_id:
                raise user_error(where, f"2 ids separated by a tab are expected, found {target_id.count(chr(9)) + 2} fields.")
            if source_id in source_index and target_id in target_index:
                gold.add((source_index[source_id], target_index[target_id]))
            else:
                side, name = (self.source, source_id) if source_id not in source_index else (self.target, target_id)
                missing.append(Problem(where, f"{side} has no sentence {name!r}."))
        if not gold:
            raise user_error(str(self.gold), f"none of its pairs has both ids in {self.source} and {self.target}.")
        if missing and self.gold_complete:
            raise UserError(first_problems(missing))
        if missing:
            message = "%d gold pairs name an id without a sentence and are left out; the first is %s"
            log.warning(message, len(missing), missing[0].where)
        data = MiningSet(
            source=list(source.values()),
            target=list(target.values()),
            source_ids=list(source),
            target_ids=list(target),
            gold=frozenset(gold),
            gold_complete=self.gold_complete,
        )
        return {self.split: data}


def parallel_set(corpus: Corpus, max_pairs: int | None) -> MiningSet:
    """Return the two sides of a parallel corpus, whose lines are the gold pairs.

    Raises:
        UserError: if it has none.
    """
    pairs: list[tuple[str, str]] = []
    for example in corpus.examples():
        if len(pairs) == max_pairs:
            break
        source, target = example.segments
        pairs.append((source.text, target.text))
    for reason, number in corpus.skipped.items():
        log.warning("%d lines skipped: %s", number, reason)
    if not pairs:
        raise user_error("task data", "there are no pairs to mine.")
    return _line_by_line([source for source, _ in pairs], [target for _, target in pairs], num_pairs=len(pairs))


def _line_by_line(source: Sequence[str], target: Sequence[str], *, num_pairs: int) -> MiningSet:
    # The first sentences of both sides are the pairs, and there are no others.
    return MiningSet(
        source=source,
        target=target,
        source_ids=[str(i) for i in range(len(source))],
        target_ids=[str(i) for i in range(len(target))],
        gold=frozenset((i, i) for i in range(num_pairs)),
        gold_complete=True,
    )


def _distinct(texts: Sequence[str], ids: Sequence[str]) -> tuple[list[str], list[int], list[str]]:
    # The distinct texts in the order they first occur, the index of each text among them, and the id of each one's first.
    index: dict[str, int] = {}
    positions = [index.setdefault(text, len(index)) for text in texts]
    first_id = dict(zip(reversed(positions), reversed(ids), strict=True))
    return list(index), positions, [first_id[i] for i in range(len(index))]


def _sentences(path: Path) -> dict[str, str]:
    # id -> text, without the blank ones.
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
    return text_of
