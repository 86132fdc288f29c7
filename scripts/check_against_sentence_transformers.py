"""Compute what mlmx has scored once more by the evaluators of Sentence-Transformers, and print both side by side.

    mlmx eval --from MODEL experiment=zero_shot inputs.data=DATA outputs=OUTPUTS
    mlmx eval --from MODEL experiment=tatoeba inputs.data=DATA outputs=OUTPUTS
    python scripts/check_against_sentence_transformers.py MODEL DATA OUTPUTS

MODEL is a folder that Sentence-Transformers loads, DATA has the files of the experiments. Weights and files are all that is shared:
the files are read here, and Sentence-Transformers runs the model. The weighted F1 of bitext is scikit-learn's over its nearest
neighbours, as mteb has it. Exits 1 where two scores differ by more than 1e-4.

Needs ``pip install sentence-transformers scikit-learn``.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    TranslationEvaluator,
)
from sklearn.metrics import f1_score

_TOLERANCE = 1e-4


def main() -> None:
    """Compare every score that both sides have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("outputs", type=Path)
    given = parser.parse_args()
    ours = scores_of(given.outputs, given.model)
    model = SentenceTransformer(str(given.model), device="cpu")
    worst = 0.0
    print("| score | mlmx | Sentence-Transformers | difference |\n| --- | --- | --- | --- |")
    for name, theirs in theirs_of(model, given.data, wanted=set(ours)):
        difference = ours[name] - theirs
        worst = max(worst, abs(difference))
        print(f"| {name} | {ours[name]:.6f} | {theirs:.6f} | {difference:+.1e} |", flush=True)
    if worst > _TOLERANCE:
        sys.exit(f"the scores differ by up to {worst:.1e}")


def scores_of(outputs: Path, model: Path) -> dict[str, float]:
    """Return ``task/split/metric`` -> value of all runs that judged this model; where several did, of the newest."""
    scores = {}
    for path in sorted(outputs.glob("runs/*/summary.json")):
        summary = json.loads(path.read_text())
        if summary["config"]["model"].get("source") == str(model.absolute()):
            scores |= {f"{score['task']}/{score['split']}/{score['metric']}": score["value"] for score in summary["scores"]}
    return scores


def theirs_of(model: SentenceTransformer, data: Path, *, wanted: set[str]) -> Iterator[tuple[str, float]]:
    """Yield ``task/split/metric`` and what Sentence-Transformers makes of it, for the scores that are wanted."""
    if "stsb_cosine/dev/cosine_spearman" in wanted:
        yield from similarity(model, data / "glue" / "STS-B" / "dev.tsv.gz")
    if "scifact/test/ndcg_at_10" in wanted:
        yield from retrieval(model, data / "scifact")
    for path in sorted((data / "tatoeba_laser").glob("tatoeba.*-eng.tsv.gz")):
        language = path.name.split(".")[1].partition("-")[0]
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            source, target = zip(*(line.rstrip("\n").split("\t") for line in lines), strict=True)
        if f"tatoeba/{language}/tatoeba_accuracy_forward" in wanted:
            values = TranslationEvaluator(source, target)(model)
            yield f"tatoeba/{language}/tatoeba_accuracy_forward", values["src2trg_accuracy"]
            yield f"tatoeba/{language}/tatoeba_accuracy_backward", values["trg2src_accuracy"]
        if f"tatoeba/{language}/cosine_weighted_f1" in wanted:
            yield f"tatoeba/{language}/cosine_weighted_f1", weighted_f1(model, source, target)


def similarity(model: SentenceTransformer, path: Path) -> Iterator[tuple[str, float]]:
    """Yield the correlations of STS-B."""
    rows = list(_table(path))
    evaluator = EmbeddingSimilarityEvaluator(
        [row["sentence1"] for row in rows], [row["sentence2"] for row in rows], [float(row["score"]) for row in rows]
    )
    values = evaluator(model)
    yield "stsb_cosine/dev/cosine_spearman", values["spearman_cosine"]
    yield "stsb_cosine/dev/cosine_pearson", values["pearson_cosine"]


def retrieval(model: SentenceTransformer, folder: Path) -> Iterator[tuple[str, float]]:
    """Yield nDCG@10, MRR@10 and Recall@100 of a folder in BEIR's layout."""
    relevant: dict[str, set[str]] = defaultdict(set)
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if int(row["score"]) > 0:
                relevant[row["query-id"]].add(row["corpus-id"])
    queries = {row["_id"]: row["text"] for row in _json_lines(folder / "queries.jsonl.gz") if row["_id"] in relevant}
    documents = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in _json_lines(folder / "corpus.jsonl.gz")}
    values = InformationRetrievalEvaluator(queries, documents, relevant, show_progress_bar=True)(model)
    yield "scifact/test/ndcg_at_10", values["cosine_ndcg@10"]
    yield "scifact/test/mrr_at_10", values["cosine_mrr@10"]
    yield "scifact/test/recall_at_100", values["cosine_recall@100"]


def weighted_f1(model: SentenceTransformer, source: Sequence[str], target: Sequence[str]) -> float:
    """Return the F1 over the targets as classes, each found as the nearest one of a source."""
    first, second = (model.encode(list(side), normalize_embeddings=True) for side in (source, target))
    nearest = (first @ second.T).argmax(axis=1)
    return float(f1_score(np.arange(len(source)), nearest, average="weighted", zero_division=0))


def _table(path: Path) -> Iterator[Mapping[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


def _json_lines(path: Path) -> Iterator[Mapping[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


if __name__ == "__main__":
    main()
