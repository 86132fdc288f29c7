"""Scored pairs of sentences: the sets of SentEval, data sets of the hub, or the scored pairs of another task."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from mlmx.data.corpora.hub import check_pinned, open_dataset
from mlmx.data.corpora.records import field_of
from mlmx.data.text_files import plain_or_compressed, read_lines
from mlmx.errors import user_error
from mlmx.tasks.glue_data import as_score
from mlmx.tasks.sentence_data import Judged, SentenceData, tell_blank
from mlmx.tasks.table_files import check_columns, read_tsv
from mlmx.tasks.task import check_splits

log = logging.getLogger(__name__)

# As SentEval has them: SMT of 2013 is not free, and so is left out.
SUBSETS: Mapping[str, tuple[str, ...]] = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}

# Where the sets lie, in SentEval's folder and as they are published.
_BENCHMARK_PLACES = ("STS/STSBenchmark/sts-test.csv", "stsbenchmark/sts-test.csv", "STSBenchmark/sts-test.csv")
_SICK_PLACES = ("SICK/SICK_test_annotated.txt", "SICK_test_annotated.txt")


class SimilarityData(ABC):
    """A source of scored pairs. Settings are keyword-only parameters of the constructor."""

    @abstractmethod
    def load(self) -> Mapping[str, Sequence[Judged]]:
        """Return the pairs of each set, by the name of the set; a higher score is a closer meaning."""


class ScoredPairs(SimilarityData):
    """The scored pairs of data that are also fine-tuned on, such as GLUE's STS-B.

    Args:
        pairs: where they come from.
        splits: which of its splits; each is a set.
    """

    def __init__(self, *, pairs: SentenceData, splits: tuple[str, ...]) -> None:
        if pairs.labels is not None:
            raise user_error("task data.pairs", f"have labels ({', '.join(pairs.labels)}); scores are needed.")
        check_splits(splits, pairs.splits, where="task data.splits")
        self.pairs = pairs
        self.splits = splits

    def load(self) -> Mapping[str, Sequence[Judged]]:
        sets = {split: self.pairs.load(split) for split in self.splits}
        for split, pairs in sets.items():
            if any(pair.gold is None for pair in pairs):
                raise user_error("task data.splits", f"{split!r} has no scores.")
        return sets


class SentEvalFiles(SimilarityData):
    """The sets of SentEval in its own layout, every pair of a set in one list (the ``all`` protocol).

    ``STS12`` to ``STS16``: all subsets of a year, ``STS/STS12-en-test/STS.input.MSRpar.txt`` with ``STS.gs.MSRpar.txt``; pairs
    whose line of scores is blank were never judged, and are left out and counted. ``STS-B``: the test pairs,
    ``STS/STSBenchmark/sts-test.csv``. ``SICK-R``: the test pairs, ``SICK/SICK_test_annotated.txt``.

    Args:
        folder: the folder that holds ``STS`` and ``SICK``.
        sets: which sets.
    """

    def __init__(
        self, *, folder: Path, sets: tuple[Literal["STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R"], ...]
    ) -> None:
        check_splits(sets, None, where="task data.sets")
        self.folder = folder
        self.sets = sets

    def load(self) -> Mapping[str, Sequence[Judged]]:
        return {name: self._set(name) for name in self.sets}

    def _set(self, name: str) -> Sequence[Judged]:
        pairs = list(self._pairs(name))
        if not pairs:
            raise user_error("task data.folder", f"there is no pair of {name} in {self.folder}.")
        tell_blank(pairs, name)
        return pairs

    def _pairs(self, name: str) -> Iterator[Judged]:
        if name == "STS-B":
            return _benchmark(self._file(*_BENCHMARK_PLACES))
        if name == "SICK-R":
            return _sick(self._file(*_SICK_PLACES))
        return self._year(name)

    def _year(self, name: str) -> Iterator[Judged]:
        unjudged = 0
        for subset in SUBSETS[name]:
            stem = f"STS/{name}-en-test/STS"
            inputs, scores = self._file(f"{stem}.input.{subset}.txt"), self._file(f"{stem}.gs.{subset}.txt")
            lines = list(read_lines(inputs))
            golds = list(read_lines(scores))
            if len(lines) != len(golds):
                raise user_error(str(scores), f"has {len(golds)} lines, but {inputs.name} has {len(lines)}.")
            for number, ((where, line), (gold_where, gold)) in enumerate(zip(lines, golds, strict=True)):
                if not gold.strip():
                    unjudged += 1
                    continue
                texts = line.split("\t")
                if len(texts) < 2:
                    raise user_error(where, "two sentences separated by a tab are expected.")
                # Some years name the sources of the sentences in further columns.
                yield Judged(f"{subset} {number}", (texts[0], texts[1]), as_score(gold, gold_where))
        if unjudged:
            log.warning("%s: %d pairs without a score are left out", name, unjudged)

    def _file(self, *places: str) -> Path:
        for place in places:
            if (path := plain_or_compressed(self.folder / place)) is not None:
                return path
        raise user_error("task data.folder", f"{self.folder} holds no {places[0]}.")


class SimilarityHub(SimilarityData):
    """Scored pairs of the Hugging Face hub, or of a local folder that ``datasets`` can load; every pair of a split in one list.

    Args:
        name: the repository, or a local folder.
        config: the data set's configuration; None for the one it has by default.
        revision: a commit of the repository. None is an error unless ``name`` is a local folder: a data set that may change under
            its name cannot be reproduced.
        splits: which of its splits; each is a set.
        text_columns: the two columns of the texts.
        score_column: that of the score, on any scale.
    """

    def __init__(
        self,
        *,
        name: str,
        config: str | None,
        revision: str | None,
        splits: tuple[str, ...],
        text_columns: tuple[str, str],
        score_column: str,
    ) -> None:
        check_pinned(name, revision, setting="task data.revision")
        check_splits(splits, None, where="task data.splits")
        self.name = name
        self.config = config
        self.revision = revision
        self.splits = splits
        self.text_columns = text_columns
        self.score_column = score_column

    def load(self) -> Mapping[str, Sequence[Judged]]:
        return {split: self._set(split) for split in self.splits}

    def _set(self, split: str) -> Sequence[Judged]:
        table = open_dataset(self.name, self.config, split=split, revision=self.revision, setting="task data.name")
        pairs: list[Judged] = []
        for where, record in table:
            first, second = (field_of(record, column, where) or "" for column in self.text_columns)
            check_columns([self.score_column], list(record), where)
            pairs.append(Judged(str(len(pairs)), (first, second), _any_score(record[self.score_column], where)))
        if not pairs:
            raise user_error("task data.name", f"{table.place} is empty.")
        tell_blank(pairs, table.place)
        return pairs


def _any_score(value: object, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise user_error(where, f"the score {value!r} is no number.")


def _benchmark(path: Path) -> Iterator[Judged]:
    # Tabs in spite of its ending, no header, and more columns where a licence is named.
    for number, (where, line) in enumerate(read_lines(path)):
        fields = line.split("\t")
        if len(fields) < 7:
            raise user_error(where, f"{len(fields)} fields; at least 7 separated by tabs are expected.")
        yield Judged(str(number), (fields[5], fields[6]), as_score(fields[4], where))


def _sick(path: Path) -> Iterator[Judged]:
    columns = ("pair_ID", "sentence_A", "sentence_B", "relatedness_score")
    names: set[str] = set()
    for where, record in read_tsv(path, columns):
        name, first, second, score = (record[column] for column in columns)
        if name in names:
            raise user_error(where, f"a second pair {name!r}.")
        names.add(name)
        yield Judged(name, (first, second), as_score(score, where))
