"""Judged examples that also occur in a pretraining corpus: found, counted, and left out of scores of their own.

The one place for all tasks: their predictions carry the texts of the examples.
"""

# N records

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlmx.data.overlap import OverlapSearch
from mlmx.tasks.metrics import CLASS_METRICS, SCORE_METRICS, TRANSLATION_METRICS, Values
from mlmx.tasks.task import Evaluation, Score, ratio_scores

log = logging.getLogger(__name__)

SUFFIX = "_decontaminated"
"""Ends the name of a split from which the examples that occur in a pretraining corpus are left out."""

Record = Mapping[str, Any]

# What is computed from ``label`` and ``prediction``; and from ``reference`` and ``translation``.
_LABEL_METRICS: Mapping[str, Callable[[Values, Values], float]] = {
    **CLASS_METRICS,
    **SCORE_METRICS,
    **{f"cosine_{metric}": function for metric, function in SCORE_METRICS.items()},
    **TRANSLATION_METRICS,
}


def _sides(metric: str) -> tuple[str, str]:
    return ("reference", "translation") if metric in TRANSLATION_METRICS else ("label", "prediction")


@dataclass(frozen=True, slots=True)
class Decontaminated:
    """An evaluation that tells which of its examples occur in a pretraining corpus.

    Attributes:
        evaluation: its scores say how many; without ``texts`` in its predictions.
        found: a JSON record for each such example: ``id`` and ``split`` as in its predictions, ``texts``, whether one of them is
            a ``whole_line`` of the corpus, and how many of its ``ngrams`` are ``ngrams_found`` there.
    """

    evaluation: Evaluation
    found: Sequence[Record]


def decontaminate(
    evaluation: Evaluation, lines: Iterable[Sequence[str]], *, ngram_words: int, min_words: int, leave_out: bool
) -> Decontaminated:
    """Look for the examples of an evaluation in a corpus.

    An example is found where one of its texts is a whole line of the corpus, or shares a run of words with it, as in GPT-3's
    analysis (arXiv 2005.14165, appendix C), after the normalisation of :func:`mlmx.data.words.plain_words`.

    Args:
        evaluation: what a task gives.
        lines: the corpus, some lines at a time.
        ngram_words: length of the runs of words.
        min_words: a text shorter than that run is looked for as one run if it has at least so many words; below, only as a line.
        leave_out: whether to add scores without the examples that were found, under the split's name with ``SUFFIX``.
    """
    records = [record for record in evaluation.predictions if "texts" in record]
    found = _find(records, lines, ngram_words=ngram_words, min_words=min_words)
    names = {(record["split"], record["id"]) for record in found}
    scores = [replace(score, contaminated=_count(records, score, names)) for score in evaluation.scores]
    _warn(scores)
    predictions = without_texts(evaluation.predictions)
    if leave_out and found:
        splits = {split for split, _ in names}
        clean = [record for record in predictions if record["split"] in splits and (record["split"], record["id"]) not in names]
        scores += _clean_scores(evaluation, clean)
        predictions += [{**record, "split": record["split"] + SUFFIX} for record in clean]
    return Decontaminated(Evaluation(scores=scores, predictions=predictions), found)


def without_texts(records: Sequence[Record]) -> list[Record]:
    """Return predictions as they are written down."""
    return [{key: value for key, value in record.items() if key != "texts"} for record in records]


def _find(records: Sequence[Record], lines: Iterable[Sequence[str]], *, ngram_words: int, min_words: int) -> list[Record]:
    texts = [text for record in records for text in record["texts"]]
    search = OverlapSearch(texts, ngram_words=ngram_words, min_words=min_words)
    for some in lines:
        search.look(some)
    overlap = search.overlap()
    owners = np.repeat(np.arange(len(records)), [len(record["texts"]) for record in records])
    whole, ngrams, ngrams_found = (
        np.bincount(owners, weights=values, minlength=len(records)).astype(int)
        for values in (overlap.whole, overlap.num_runs, overlap.num_found)
    )
    return [
        {
            "id": records[i]["id"],
            "split": records[i]["split"],
            "texts": list(records[i]["texts"]),
            "whole_line": bool(whole[i]),
            "ngrams": int(ngrams[i]),
            "ngrams_found": int(ngrams_found[i]),
        }
        for i in np.flatnonzero(whole | ngrams_found).tolist()
    ]


def _count(records: Sequence[Record], score: Score, names: set[tuple[str, str]]) -> tuple[int, int] | None:
    own = [(record["split"], record["id"]) for record in records if record["split"] == score.split and _tells(record, score.metric)]
    return (sum(name in names for name in own), len(own)) if own else None


def _tells(record: Record, metric: str) -> bool:
    if metric in record.get("ratios", {}) or metric in record.get("metrics", {}):
        return True
    return metric in _LABEL_METRICS and all(side in record for side in _sides(metric))


def _warn(scores: Sequence[Score]) -> None:
    told = set()
    for score in scores:
        if score.contaminated is not None and score.contaminated[0] and score.split not in told:
            told.add(score.split)
            message = "%s: %d of %d examples of split %s also occur in a pretraining corpus; contamination.jsonl lists them"
            log.warning(message, score.task, *score.contaminated, score.split)


def _clean_scores(evaluation: Evaluation, clean: Sequence[Record]) -> list[Score]:
    scores = []
    for score in evaluation.scores:
        own = [record for record in clean if record["split"] == score.split and _tells(record, score.metric)]
        if not own:
            continue
        everything = [record for record in evaluation.predictions if record["split"] == score.split]
        again, _ = _recomputed(everything, score)
        if not np.isclose(again, score.value, rtol=1e-6, atol=1e-9):
            message = "%s: %s of split %s does not come out of its predictions (%g, not %g), so it is not given decontaminated"
            log.warning(message, score.task, score.metric, score.split, again, score.value)
            continue
        value, num_examples = _recomputed(own, score)
        scores.append(replace(score, split=score.split + SUFFIX, value=value, num_examples=num_examples, trivial=None))
    return scores


def _recomputed(records: Sequence[Record], score: Score) -> tuple[float, int]:
    # The score over some records of its split, and over how many examples it is.
    told = [record for record in records if _tells(record, score.metric)]
    if score.metric in told[0].get("ratios", {}):
        again = {one.metric: one for one in ratio_scores([record for record in records if "ratios" in record], task=score.task)}
        return again[score.metric].value, again[score.metric].num_examples
    if score.metric in told[0].get("metrics", {}):
        return float(np.mean([record["metrics"][score.metric] for record in told])), len(told)
    gold, predicted = (np.array([record[side] for record in told]) for side in _sides(score.metric))
    return _LABEL_METRICS[score.metric](gold, predicted), len(told)
