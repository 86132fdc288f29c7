"""Compute what mlmx has scored once more by the evaluators of Sentence-Transformers and of mteb, and print all side by side.

    mlmx eval --from MODEL experiment=zero_shot inputs.data=DATA outputs=OUTPUTS
    mlmx eval --from MODEL experiment=tatoeba inputs.data=DATA outputs=OUTPUTS
    mlmx eval --from MODEL experiment=tatoeba protocol@task.tatoeba.protocol=cosine inputs.data=DATA outputs=OUTPUTS
    python scripts/check_scores.py MODEL DATA OUTPUTS

MODEL is a folder that Sentence-Transformers loads, DATA has the files of the experiments. Weights and files are all that is shared
with mlmx: the files are read here, and Sentence-Transformers runs the model, once for each text. Exits 1 where two scores differ by
more than 1e-4, and where there is nothing to compare. Sentences of Tatoeba whose tokens are the same (characters that the
vocabulary does not know) have the same vector, and which of them is the nearest is a matter of rounding: each may change a score by
one example.

Needs ``pip install sentence-transformers mteb``.
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
from typing import Any, NamedTuple

import mteb
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskBitextMining, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    TranslationEvaluator,
)

_TOLERANCE = 1e-4
_SETS = ("stsb", "scifact", "tatoeba")
_SENTENCE_TRANSFORMERS, _MTEB = "Sentence-Transformers", "mteb"


class Value(NamedTuple):
    """A score as somebody else computes it, and by how much rounding may change it."""

    score: str
    by: str
    value: float
    slack: float = 0.0


Values = Iterator[Value]


def main() -> None:
    """Compare every score that both sides have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--sets", nargs="+", choices=_SETS, default=_SETS)
    given = parser.parse_args()
    ours = scores_of(given.outputs, given.model)
    model = Remembering(str(given.model), device="cpu")
    computed = {"stsb": similarity, "scifact": retrieval, "tatoeba": translations}
    differences, wrong = [], []
    print(f"| score | mlmx | {_SENTENCE_TRANSFORMERS} | {_MTEB} | largest difference |\n| --- | --- | --- | --- | --- |")
    for name in given.sets:
        theirs: dict[str, dict[str, Value]] = defaultdict(dict)
        for found in computed[name](model, given.data, wanted=set(ours)):
            if found.score in ours:
                theirs[found.score][found.by] = found
        for score, values in theirs.items():
            differences.append(max(abs(ours[score] - found.value) for found in values.values()))
            wrong += [score] * (differences[-1] > _TOLERANCE + max(found.slack for found in values.values()))
            shown = [f"{values[by].value:.6f}" if by in values else "" for by in (_SENTENCE_TRANSFORMERS, _MTEB)]
            print(f"| {score} | {ours[score]:.6f} | {' | '.join(shown)} | {differences[-1]:.1e} |", flush=True)
    if not differences:
        sys.exit(f"nothing to compare: none of the runs in {given.outputs} that judged {given.model} has scores of {given.sets}")
    print(f"\n{len(differences)} scores, largest difference {max(differences):.1e}")
    if wrong:
        sys.exit(f"the scores differ: {', '.join(wrong)}")


class Remembering(SentenceTransformer):
    """A model that runs once for each text, whoever asks for its embedding."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.known: dict[str, np.ndarray] = {}

    def encode(self, inputs: Sequence[str], *, prompt: str | None = None, prompt_name: str | None = None, **settings: Any) -> Any:
        """Return the embeddings in the form that is asked for: an array, a tensor, or a list of tensors."""
        text_before = prompt or self.prompts.get(prompt_name or self.default_prompt_name or "", "")
        texts = [text_before + text for text in inputs]
        new = list(dict.fromkeys(text for text in texts if text not in self.known))
        if new:
            print(f"encoding {len(new):,} texts", file=sys.stderr)
            self.known |= dict(zip(new, super().encode(new, prompt=""), strict=True))
        embeddings = np.stack([self.known[text] for text in texts])
        if settings.get("convert_to_tensor") or not settings.get("convert_to_numpy", True):
            tensor = torch.from_numpy(embeddings)
            return tensor if settings.get("convert_to_tensor") else list(tensor)
        return embeddings

    def num_inputs(self, texts: Sequence[str]) -> int:
        """Return how many of the texts differ in their tokens."""
        tokens = self.tokenizer(list(texts), truncation=True, max_length=self.max_seq_length)["input_ids"]
        return len({tuple(ids) for ids in tokens})


def scores_of(outputs: Path, model: Path) -> dict[str, float]:
    """Return ``task/split/metric`` -> value of all runs that judged this model; where several did, of the newest."""
    scores = {}
    for path in sorted(outputs.glob("runs/*/summary.json")):
        summary = json.loads(path.read_text())
        if summary["config"]["model"].get("source") == str(model.absolute()):
            scores |= {f"{score['task']}/{score['split']}/{score['metric']}": score["value"] for score in summary["scores"]}
    return scores


def similarity(model: SentenceTransformer, data: Path, *, wanted: set[str]) -> Values:
    """Yield the correlations of STS-B."""
    if "stsb_cosine/dev/cosine_spearman" not in wanted:
        return
    rows = list(_table(data / "glue" / "STS-B" / "dev.tsv.gz"))
    first, second = ([row[side] for row in rows] for side in ("sentence1", "sentence2"))
    gold = [float(row["score"]) for row in rows]
    values = EmbeddingSimilarityEvaluator(first, second, gold)(model)
    found = by_mteb(model, AbsTaskSTS, "STS", {"sentence1": first, "sentence2": second, "score": gold})
    for metric in ("spearman", "pearson"):
        yield Value(f"stsb_cosine/dev/cosine_{metric}", _SENTENCE_TRANSFORMERS, values[f"{metric}_cosine"])
        yield Value(f"stsb_cosine/dev/cosine_{metric}", _MTEB, found[f"cosine_{metric}"])


def retrieval(model: SentenceTransformer, data: Path, *, wanted: set[str]) -> Values:
    """Yield the scores of SciFact, in BEIR's layout."""
    if "scifact/test/ndcg_at_10" not in wanted:
        return
    folder = data / "scifact"
    relevant: dict[str, dict[str, int]] = defaultdict(dict)
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if int(row["score"]) > 0:
                relevant[row["query-id"]][row["corpus-id"]] = int(row["score"])
    queries = {row["_id"]: row["text"] for row in _json_lines(folder / "queries.jsonl.gz") if row["_id"] in relevant}
    documents = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in _json_lines(folder / "corpus.jsonl.gz")}
    evaluator = InformationRetrievalEvaluator(
        queries,
        documents,
        {query: set(found) for query, found in relevant.items()},
        precision_recall_at_k=[100, 1000],
        map_at_k=[1000],
    )
    values = evaluator(model)
    texts = {
        name: Dataset.from_list([{"id": key, "text": text} for key, text in of.items()])
        for name, of in (("queries", queries), ("corpus", documents))
    }
    found = by_mteb(model, AbsTaskRetrieval, "Retrieval", {**texts, "relevant_docs": dict(relevant), "top_ranked": None})
    names = {"ndcg_at_10": "ndcg@10", "mrr_at_10": "mrr@10", "recall_at_100": "recall@100", "recall_at_1000": "recall@1000"}
    for metric, theirs in names.items():
        yield Value(f"scifact/test/{metric}", _SENTENCE_TRANSFORMERS, values[f"cosine_{theirs}"])
        yield Value(f"scifact/test/{metric}", _MTEB, found[metric])
    yield Value("scifact/test/map", _SENTENCE_TRANSFORMERS, values["cosine_map@1000"])
    yield Value("scifact/test/map", _MTEB, found["map_at_1000"])


def translations(model: Remembering, data: Path, *, wanted: set[str]) -> Values:
    """Yield the scores of Tatoeba, language by language: the accuracies of XTREME, and what mteb makes of it."""
    if not any(score.startswith("tatoeba/") for score in wanted):
        return
    for path in sorted((data / "tatoeba_laser").glob("tatoeba.*-eng.tsv.gz")):
        language = path.name.split(".")[1].partition("-")[0]
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            source, target = zip(*(line.rstrip("\n").split("\t") for line in lines), strict=True)
        slack = sum(len(side) - model.num_inputs(side) for side in (source, target)) / len(source)
        values = TranslationEvaluator(source, target)(model)
        yield Value(f"tatoeba/{language}/tatoeba_accuracy_forward", _SENTENCE_TRANSFORMERS, values["src2trg_accuracy"], slack)
        yield Value(f"tatoeba/{language}/tatoeba_accuracy_backward", _SENTENCE_TRANSFORMERS, values["trg2src_accuracy"], slack)
        found = by_mteb(model, AbsTaskBitextMining, "BitextMining", {"sentence1": source, "sentence2": target})
        yield Value(f"tatoeba/{language}/tatoeba_accuracy_forward", _MTEB, found["accuracy"], slack)
        yield Value(f"tatoeba/{language}/cosine_accuracy", _MTEB, found["accuracy"], slack)
        for metric in ("precision", "recall", "f1"):
            yield Value(f"tatoeba/{language}/cosine_weighted_{metric}", _MTEB, found[metric], slack)


def by_mteb(model: SentenceTransformer, base: type[AbsTask], kind: str, data: Mapping[str, Any]) -> Mapping[str, float]:
    """Return what mteb scores on data that are in memory."""
    is_retrieval = base is AbsTaskRetrieval
    main_score = {"STS": "cosine_spearman", "Retrieval": "ndcg_at_10", "BitextMining": "f1"}[kind]

    class Local(base):  # type: ignore[misc, valid-type]
        metadata = TaskMetadata(
            dataset={"path": "in memory", "revision": "none"},
            name=f"Local{kind}",
            description="Data in memory.",
            type=kind,
            eval_langs=["eng-Latn"],
            main_score=main_score,
        )

        def load_data(self, **_: Any) -> None:
            self.dataset = {"default": {"test": data}} if is_retrieval else DatasetDict({"test": Dataset.from_dict(dict(data))})
            self.data_loaded = True

    result = mteb.evaluate(model, Local(), cache=None, co2_tracker=False, show_progress_bar=False)
    return dict(result.task_results[0].scores["test"][0])


def _table(path: Path) -> Iterator[Mapping[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


def _json_lines(path: Path) -> Iterator[Mapping[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


if __name__ == "__main__":
    main()
