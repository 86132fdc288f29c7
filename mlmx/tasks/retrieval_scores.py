"""Rankings of documents, what the field measures on them, and the files in which it exchanges them."""

# Q queries, K results

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from mlmx import keyed
from mlmx.tasks.retrieval_data import Collection
from mlmx.tasks.search import Neighbours

Ranking = dict[str, float]
"""Document id -> score, best first."""

QueryScores = dict[str, dict[str, float]]
"""Query id -> metric -> value."""

DEPTH = 1000
"""Documents of a ranking at most, as TREC has it."""

METRICS = {"ndcg_at_10": "nDCG@10", "mrr_at_10": "RR@10", "recall_at_100": "R@100", "recall_at_1000": "R@1000", "map": "AP"}
"""Our name of a metric, and that of ``ir_measures``."""

_QUERIES_AT_A_TIME = 1000


def rankings(
    collection: Collection, found: Neighbours, *, ignore_identical_ids: bool, least_score: float | None
) -> dict[str, Ranking]:
    """Return query id -> ranking.

    Args:
        collection: the documents and queries.
        found: (Q, K) the documents found, best first.
        ignore_identical_ids: leave out the document that is called as the query is.
        least_score: documents that score no more are not found; None: all are.
    """
    ranked: dict[str, Ranking] = {}
    for query, documents, scores in zip(collection.query_ids, found.indices.tolist(), found.scores.tolist(), strict=True):
        names = ((collection.document_ids[document], score) for document, score in zip(documents, scores, strict=True))
        kept = (
            (name, score)
            for name, score in names
            if (least_score is None or score > least_score) and not (ignore_identical_ids and name == query)
        )
        ranked[query] = dict(islice(kept, DEPTH))
    return ranked


def query_scores(judged: Mapping[str, Mapping[str, int]], ranked: Mapping[str, Ranking]) -> QueryScores:
    """Return query id -> metric -> value for every judged query; one without results has 0 everywhere."""
    import ir_measures

    measures = {ir_measures.parse_measure(name): metric for metric, name in METRICS.items()}
    values: QueryScores = {query: dict.fromkeys(METRICS, 0.0) for query in judged}
    remaining = iter(judged.items())
    while some := dict(islice(remaining, _QUERIES_AT_A_TIME)):
        run = {query: ranked[query] for query in some if ranked.get(query)}
        for value in ir_measures.iter_calc(list(measures), some, run) if run else ():
            values[value.query_id][measures[value.measure]] = float(value.value)
    return values


def random_neighbours(num_queries: int, num_documents: int) -> Neighbours:
    """Return documents in an order that nothing of the queries and documents decides, for what chance finds."""
    num_results = min(DEPTH + 1, num_documents)
    order = keyed.permutation(num_documents, seed=0, name="random ranking")
    starts = keyed.integers(keyed.row_keys(seed=0, epoch=0, row_ids=np.arange(num_queries)), num_documents)
    indices = order[(starts[:, None] + np.arange(num_results)) % num_documents]
    return Neighbours(indices, np.tile(np.arange(num_results, 0, -1, dtype=np.float32), (num_queries, 1)))


def write_run(path: Path, ranked: Mapping[str, Ranking], name: str) -> None:
    """Write rankings as TREC does: query, Q0, document, rank from 1, score and the name of the system on each line."""
    with path.open("w", encoding="utf-8") as file:
        for query, ranking in ranked.items():
            file.writelines(
                f"{query} Q0 {document} {rank} {score:.9g} {name}\n" for rank, (document, score) in enumerate(ranking.items(), 1)
            )
