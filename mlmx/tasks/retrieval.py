"""Retrieval: finding the documents that answer a query, by their embeddings."""

# Q queries, N documents, D width

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.build import Positive
from mlmx.errors import user_error
from mlmx.fingerprint import canonical_json
from mlmx.models.encoder import Encoder
from mlmx.models.load import untrained
from mlmx.models.pooling import Pooling
from mlmx.objectives.contrast import Similarity
from mlmx.objectives.objective import Objective
from mlmx.tasks.bm25 import BM25
from mlmx.tasks.embedding import Embedding, Purpose
from mlmx.tasks.lexical import Lexical
from mlmx.tasks.retrieval_data import Collection, RetrievalData
from mlmx.tasks.retrieval_scores import DEPTH, METRICS, QueryScores, Ranking, query_scores, random_neighbours, rankings, write_run
from mlmx.tasks.search import Neighbours, nearest
from mlmx.tasks.task import Evaluation, Score, Task, check_splits
from mlmx.training.parallel import current

log = logging.getLogger(__name__)

# Documents tokenised at a time: their tokens and embeddings are in memory, those of the others on disk.
_CHUNK_DOCUMENTS = 50_000
_LISTED_DOCUMENTS = 10  # of a ranking, in a prediction
_BM25 = "bm25"

# Encoders that are judged beside the one in question.
Control = Literal["untrained", "before_pretraining"]


class Retrieval(Task):
    """Retrieval as BEIR measures it: nDCG@10, MRR@10, Recall@100, Recall@1000 and MAP of exact search over embeddings.

    Values are those of trec_eval (MRR of MS MARCO's script), by ``ir_measures``: means over all queries, where a query without
    results has 0. Beside them stand those of BM25 on the same data, ``bm25_ndcg_at_10`` and so on, and those of encoders that show
    what the pretraining is worth: ``untrained_ndcg_at_10``, ``before_pretraining_ndcg_at_10``.

    In its stage's directory an evaluation leaves the rankings in TREC's format, ``run.<split>.trec``, ``bm25.<split>.trec`` and so
    on, and the embeddings of the documents, ``index/<content>.npy``, named by the hash of all that they depend on: an evaluation
    that was interrupted, and further splits over the same documents, use them again.

    Args:
        name: the task's name.
        data: the documents, the queries and what answers them.
        splits: the splits to judge.
        layer: the layer whose states are pooled: 0 the embeddings, ``last`` or a number up to the number of layers, negative
            from the end.
        width: coordinates of an embedding that are kept, the first ones; None: as the encoder's folder says, otherwise all.
        pooling: how states become a text's embedding; None: as the encoder's folder says, see ``mlmx.tasks.embedding``.
        similarity: ``cosine`` or ``dot``, the inner product.
        lexical: what is added to the similarity: the sum over the entries of the vocabulary that query and document share, of those
            with the largest logits of the encoder's language-model head, of the products of these logits (scaled to length 1 like
            the vectors if ``similarity`` is ``cosine``): the representation of DupMAE. None: nothing.
        query_prefix: is put before each query, such as ``"query: "``; None: what the encoder's folder says.
        document_prefix: is put before each document, such as ``"passage: "``; None: what the encoder's folder says.
        ignore_identical_ids: leave out the document that is called as the query is, as ArguAna and Quora need it.
        bm25: the ranking by words that is judged beside the encoder; None for none.
        controls: encoders that are judged beside it, without fine-tuning: ``untrained``, of the same size with random weights, and
            ``before_pretraining``, the published one that mlmx pretrained further, where there is one.
        max_length: tokens of a text, special ones included; longer ones are cut, and the cut pieces reported. None: as many as the
            encoder's folder says.
        batch_tokens: tokens per forward.
    """

    def __init__(
        self,
        *,
        name: str,
        data: RetrievalData,
        splits: tuple[str, ...],
        layer: int | Literal["last"],
        width: Positive | None,
        pooling: Pooling | None,
        similarity: Similarity,
        lexical: Lexical | None,
        query_prefix: str | None,
        document_prefix: str | None,
        ignore_identical_ids: bool,
        bm25: BM25 | None,
        controls: tuple[Control, ...],
        max_length: Positive | None,
        batch_tokens: Positive,
    ) -> None:
        check_splits(splits, None, where=f"task.{name}.splits")
        if lexical is not None and layer != "last":
            raise user_error(f"task.{name}.lexical", "is told from the last layer; set layer to last, or lexical to null.")
        self.name = name
        self.data = data
        self.splits = splits
        self.embedding: Embedding = Embedding(
            layer=layer,
            width=width,
            pooling=pooling,
            normalize=similarity == "cosine",
            max_length=max_length,
            prompts={"query": query_prefix, "document": document_prefix},
            lexical=lexical,
        )
        self.ignore_identical_ids = ignore_identical_ids
        self.bm25 = bm25
        self.controls = controls
        self.batch_tokens = batch_tokens

    def check_data(self) -> None:
        for split in self.splits:
            self.data.load(split)

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        encoder = model.encoder if isinstance(model, Objective) else model
        settings = self.embedding.resolved(encoder, task=self.name).told()
        encoders = {"": encoder, **self._control_encoders(encoder)}
        scores: list[Score] = []
        predictions: list[dict[str, Any]] = []
        for split in self.splits:
            collection = self.data.load(split)
            # One more than is ranked, in place of the one that is called as the query is.
            found = {who: self._search(one, collection, DEPTH + 1, who) for who, one in encoders.items()}
            ranked_by = {who: self._ranked(collection, neighbours) for who, neighbours in found.items()}
            if self.bm25 is not None:
                by_words = self.bm25.search(collection.queries, collection.documents, DEPTH + 1)
                ranked_by[_BM25] = self._ranked(collection, by_words, least_score=0.0)
            values: QueryScores = {query: {} for query in collection.query_ids}
            for who, ranked in ranked_by.items():
                self._write_run(collection, ranked, who or "run")
                for query, of_query in query_scores(collection.judged, ranked).items():
                    values[query] |= {_metric(who, metric): value for metric, value in of_query.items()}
            text_of = dict(zip(collection.query_ids, collection.queries, strict=True))
            chance = random_neighbours(len(collection.queries), len(collection.documents))
            by_chance = query_scores(collection.judged, self._ranked(collection, chance))
            scores += [self._score(values, by_chance, split, who, metric, settings) for who in ranked_by for metric in METRICS]
            predictions += [
                {
                    "id": query,
                    "split": split,
                    "documents": list(ranked_by[""][query])[:_LISTED_DOCUMENTS],
                    "metrics": of_query,
                    "texts": [text_of[query]],
                }
                for query, of_query in values.items()
            ]
        return Evaluation(scores=scores, predictions=predictions)

    def _control_encoders(self, encoder: Encoder) -> dict[str, Encoder]:
        controls: dict[str, Encoder] = {}
        for who in self.controls:
            make = self.before_pretraining if who == "before_pretraining" else partial(untrained, encoder)
            if make is not None and (control := make()) is not None:
                if self.embedding.lexical is not None and control.head is None:
                    log.warning("%s: %s is not judged, since it has no language-model head for lexical", self.name, who)
                    continue
                control.sentence = encoder.sentence  # so that texts become vectors as those do that they are compared with
                controls[who] = control.to(encoder.base.device).eval()
        return controls

    def _ranked(self, collection: Collection, found: Neighbours, *, least_score: float | None = None) -> dict[str, Ranking]:
        return rankings(collection, found, ignore_identical_ids=self.ignore_identical_ids, least_score=least_score)

    def _write_run(self, collection: Collection, ranked: dict[str, Ranking], name: str) -> None:
        if self.folder is not None:
            write_run(self.folder / f"{name}.{collection.split}.trec", ranked, name)

    def _score(
        self, values: QueryScores, chance: QueryScores, split: str, who: str, metric: str, settings: Mapping[str, str | float]
    ) -> Score:
        return Score(
            task=self.name,
            split=split,
            metric=_metric(who, metric),
            value=float(np.mean([of_query[_metric(who, metric)] for of_query in values.values()])),
            num_examples=len(values),
            higher_is_better=True,
            trivial=float(np.mean([of_query[metric] for of_query in chance.values()])),
            settings={} if who == _BM25 else settings,
        )

    @property
    def _num_entries(self) -> int:
        return 0 if self.embedding.lexical is None else self.embedding.lexical.num_entries

    def _search(self, encoder: Encoder, collection: Collection, num_results: int, who: str = "") -> Neighbours:
        queries = self._embeddings(encoder, collection.queries, _told("queries", who), "query")
        documents = self._index(encoder, collection.documents, _told("documents", who))
        return nearest(queries, documents, num_results, device=encoder.base.device, num_entries=self._num_entries)

    def _index(self, encoder: Encoder, documents: Sequence[str], what: str) -> NDArray[np.float32]:
        # The main process writes the index, and all of them read it.
        processes = current()
        own = None if self.folder is None else self.folder / "index" / f"{self._content_of(encoder, documents)}.npy"
        told, there = processes.gather((None if own is None else str(own), own is not None and own.exists()))[0]
        if told is None:
            return self._embeddings(encoder, documents, what, "document")
        path = Path(told)
        if not there:
            self._write_index(encoder, documents, path, what, writes=processes.is_main)
            processes.barrier()
        mapped: NDArray[np.float32] = np.load(path, mmap_mode="r")
        return mapped

    def _write_index(self, encoder: Encoder, documents: Sequence[str], path: Path, what: str, *, writes: bool) -> None:
        partial = path.with_suffix(".partial")
        if writes:
            path.parent.mkdir(exist_ok=True)
            num_columns = self.embedding.resolved(encoder, task=self.name).num_columns(encoder)
            index = np.lib.format.open_memmap(partial, "w+", np.float32, (len(documents), num_columns))
        for start in range(0, len(documents), _CHUNK_DOCUMENTS):
            some = slice(start, start + _CHUNK_DOCUMENTS)
            place = f" from {start + 1:,} on, of {len(documents):,}" if len(documents) > _CHUNK_DOCUMENTS else ""
            vectors = self._embeddings(encoder, documents[some], what + place, "document")
            if writes:
                index[some] = vectors
        if writes:
            index.flush()
            partial.replace(path)

    def _embeddings(self, encoder: Encoder, texts: Sequence[str], what: str, purpose: Purpose) -> NDArray[np.float32]:
        embedding = self.embedding.resolved(encoder, task=self.name)
        return embedding.vectors(encoder, texts, task=self.name, what=what, batch_tokens=self.batch_tokens, purpose=purpose)

    def _content_of(self, encoder: Encoder, documents: Sequence[str]) -> str:
        # Of all that the embeddings depend on; which GPU made them is not known, nor is it in any fingerprint.
        content = hashlib.sha256()
        for tensor in (encoder if self._num_entries else encoder.base).state_dict().values():
            content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        content.update(encoder.tokenizer.backend_tokenizer.to_str().encode())
        how = self.embedding.resolved(encoder, task=self.name)
        settings = [how.told(), how.normalize, how.prompts["document"]]
        content.update(canonical_json([settings, len(documents)]).encode())
        for document in documents:
            content.update(f"{len(document)}:{document}".encode())
        return content.hexdigest()[:16]


def _metric(who: str, metric: str) -> str:
    return f"{who}_{metric}" if who else metric


def _told(what: str, who: str) -> str:
    return f"{what} ({who})" if who else what
