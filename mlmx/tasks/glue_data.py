"""The data of GLUE: the TSV files as they were published, or the hub's copy of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlmx.data.corpora.hub import check_pinned, open_dataset
from mlmx.data.text_files import plain_or_compressed
from mlmx.errors import nearest, user_error
from mlmx.tasks.sentence_data import Judged, SentenceData, tell_blank
from mlmx.tasks.table_files import check_columns, read_tsv

log = logging.getLogger(__name__)

MAX_SCORE = 5.0
"""STS-B's scores go from 0 to 5."""

_BINARY = ("0", "1")
_TWO_WAY = ("entailment", "not_entailment")
_THREE_WAY = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How a dataset is laid out.

    Attributes:
        config: its name in the hub's copy.
        texts: the columns of its texts.
        label: the column of its label.
        labels: in the order of the hub's numbers; None where it is a score.
        metrics: what the leaderboard measures.
        id: the column of a test example's number.
        header: the columns of labelled files without a line for them.
        drops_ragged: whether the field leaves out lines that are broken in the published file.
        hub_texts: the hub's columns of its texts, where they have other names.
    """

    config: str
    texts: tuple[str, ...]
    label: str = "label"
    labels: tuple[str, ...] | None = _BINARY
    metrics: tuple[str, ...] = ("accuracy",)
    id: str = "index"
    header: tuple[str, ...] | None = None
    drops_ragged: bool = False
    hub_texts: tuple[str, ...] | None = None


_PAIR = ("sentence1", "sentence2")
_LAYOUTS = {
    "CoLA": _Layout(
        config="cola", texts=("sentence",), header=("source", "label", "mark", "sentence"), metrics=("matthews",)
    ),
    "SST-2": _Layout(config="sst2", texts=("sentence",)),
    "MRPC": _Layout(
        config="mrpc", texts=("#1 String", "#2 String"), label="Quality", metrics=("f1", "accuracy"), hub_texts=_PAIR
    ),
    "STS-B": _Layout(config="stsb", texts=_PAIR, label="score", labels=None, metrics=("pearson", "spearman")),
    # Questions with line breaks inside lie broken in the published files; the hub's copy and the usual readers leave them out.
    "QQP": _Layout(
        config="qqp",
        texts=("question1", "question2"),
        label="is_duplicate",
        metrics=("f1", "accuracy"),
        id="id",
        drops_ragged=True,
    ),
    "MNLI": _Layout(
        config="mnli", texts=_PAIR, label="gold_label", labels=_THREE_WAY, hub_texts=("premise", "hypothesis")
    ),
    "QNLI": _Layout(config="qnli", texts=("question", "sentence"), labels=_TWO_WAY),
    "RTE": _Layout(config="rte", texts=_PAIR, labels=_TWO_WAY),
    "WNLI": _Layout(config="wnli", texts=_PAIR),
}  # fmt: skip
_DIAGNOSTICS = _Layout(config="ax", texts=_PAIR, labels=_THREE_WAY, metrics=("matthews",), hub_texts=("premise", "hypothesis"))
# The published file with labels has other columns than the one without, and no numbers.
_LABELLED_DIAGNOSTICS = _Layout(
    config="ax", texts=("Premise", "Hypothesis"), label="Label", labels=_THREE_WAY, metrics=("matthews",)
)


class GlueData(SentenceData):
    """One of the datasets of GLUE but MNLI.

    The TSV files are read as they were published: CoLA's labelled ones have no header, a quotation mark means nothing, MRPC's begin
    with a byte order mark.

    Args:
        dataset: ``CoLA``, ``SST-2``, ``MRPC``, ``STS-B``, ``QQP``, ``QNLI``, ``RTE`` or ``WNLI``.
        source: the folder that holds its ``train.tsv``, ``dev.tsv`` and ``test.tsv``, compressed or not; or the hub's repository of
            GLUE, or a local copy of that repository.
        revision: a commit of the repository.
    """

    splits: tuple[str, ...] = ("train", "dev", "test")

    def __init__(
        self,
        *,
        dataset: Literal["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "QNLI", "RTE", "WNLI"],
        source: str,
        revision: str | None,
    ) -> None:
        self._init(dataset, source, revision)
        self.submissions: Mapping[str, str] = {"test": f"{dataset}.tsv"}

    def _init(self, dataset: str, source: str, revision: str | None) -> None:
        check_pinned(source, revision, setting="task data.revision")
        self.dataset = dataset
        self.source = source
        self.revision = revision
        self.labels = _LAYOUTS[dataset].labels
        self.metrics = _LAYOUTS[dataset].metrics

    def load(self, split: str) -> Sequence[Judged]:
        if _is_folder_of_tables(self.source):
            return self._read_file(_file(self.source, split), split, _LAYOUTS[self.dataset])
        return self._read_hub(self.source, split, _LAYOUTS[self.dataset])

    def _read_file(self, path: Path, split: str, layout: _Layout) -> list[Judged]:
        is_test = split.startswith("test")
        ragged: list[str] | None = [] if layout.drops_ragged else None
        examples: list[Judged] = []
        ids: set[str] = set()
        unsure = 0
        columns = [*layout.texts, layout.id if is_test else layout.label]
        for where, record in read_tsv(path, columns, header=None if is_test else layout.header, ragged=ragged):
            if not is_test and record[layout.label] == "-" and self.dataset == "MNLI":
                unsure += 1  # where its annotators do not agree
                continue
            # Numbers in labelled files are those of other files, or missing; a submission needs those of the test.
            name = record[layout.id] if is_test else str(len(examples))
            if name in ids:
                raise user_error(where, f"a second example {name!r}.")
            ids.add(name)
            gold = None if is_test else _gold(record[layout.label], layout, where)
            examples.append(Judged(name, tuple(record[column] for column in layout.texts), gold))
        for number, why in ((len(ragged or ()), f"broken, such as {(ragged or [''])[0]}"), (unsure, "without a gold label")):
            if number:
                log.warning("%s: %d lines are left out: %s", path, number, why)
        if not examples:
            raise user_error(str(path), "holds no example.")
        tell_blank(examples, str(path))
        return examples

    def _read_hub(self, source: str, split: str, layout: _Layout) -> list[Judged]:
        hub_split = split.replace("dev", "validation")
        records = open_dataset(source, layout.config, split=hub_split, revision=self.revision, setting="task data.source")
        examples = []
        for where, record in records:
            check_columns([*(layout.hub_texts or layout.texts), "label", "idx"], list(record), where)
            texts = tuple(str(record[column]) for column in layout.hub_texts or layout.texts)
            examples.append(Judged(str(record["idx"]), texts, _hub_gold(record["label"], layout, where)))
        if not examples:
            raise user_error("task data.source", f"{records.place} is empty.")
        tell_blank(examples, records.place)
        return examples


class MnliData(GlueData):
    """MNLI, with the diagnostics of GLUE (AX), which are judged by its classifier.

    Splits: ``train``, ``dev_matched`` and ``dev_mismatched``, ``test_matched`` and ``test_mismatched``, and ``ax``.

    Args:
        source: the folder that holds its ``train.tsv``, ``dev_matched.tsv`` ...; or the hub's repository of GLUE.
        diagnostics: the folder that holds ``diagnostic-full.tsv``, with labels, or ``diagnostic.tsv``, without; or the hub's
            repository (without labels). None: there are none.
        revision: a commit of the repository.
    """

    def __init__(self, *, source: str, diagnostics: str | None, revision: str | None) -> None:
        self._init("MNLI", source, revision)
        self.diagnostics = diagnostics
        self.splits = ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
        self.submissions = {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"}
        if diagnostics is not None:
            self.splits = (*self.splits, "ax")
            self.submissions = {**self.submissions, "ax": "AX.tsv"}

    def load(self, split: str) -> Sequence[Judged]:
        if split != "ax":
            return super().load(split)
        assert self.diagnostics is not None
        if not _is_folder_of_tables(self.diagnostics):
            return self._read_hub(self.diagnostics, "test", _DIAGNOSTICS)
        if (labelled := plain_or_compressed(Path(self.diagnostics) / "diagnostic-full.tsv")) is not None:
            return self._read_file(labelled, "ax", _LABELLED_DIAGNOSTICS)
        return self._read_file(_file(self.diagnostics, "diagnostic"), "test", _DIAGNOSTICS)


def _is_folder_of_tables(source: str) -> bool:
    folder = Path(source)
    return folder.is_dir() and next(folder.rglob("*.parquet"), None) is None


def _file(folder: str, stem: str) -> Path:
    found = plain_or_compressed(Path(folder) / f"{stem}.tsv")
    if found is None:
        there = ", ".join(sorted(path.name for path in Path(folder).iterdir())) or "nothing"
        raise user_error("task data.source", f"{folder} holds no {stem}.tsv (or .tsv.gz ...); there is {there}.")
    return found


def _gold(label: str, layout: _Layout, where: str) -> str | float:
    if layout.labels is not None:
        if label not in layout.labels:
            message = f"{label!r} is no label of this dataset; there are {', '.join(layout.labels)}."
            raise user_error(where, message, nearest(label, layout.labels))
        return label
    return as_score(label, where)


def as_score(text: str, where: str) -> float:
    """Return the score that a field holds.

    Raises:
        UserError: if it is no number from 0 to 5.
    """
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= MAX_SCORE:
        raise user_error(where, f"the score {text!r} is no number from 0 to {MAX_SCORE:g}.")
    return score


def _hub_gold(label: Any, layout: _Layout, where: str) -> str | float | None:
    if label is None or label == -1:  # a secret
        return None
    if layout.labels is None:
        return as_score(str(label), where)
    if label not in range(len(layout.labels)):
        raise user_error(where, f"{label!r} is no label of this dataset; there are 0 to {len(layout.labels) - 1}.")
    return layout.labels[int(label)]
