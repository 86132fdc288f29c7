"""Retrieval by an encoder that is fine-tuned for it."""

# Q queries, K results, E texts of an example

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.build import NonNegative, Positive, PositiveFloat
from mlmx.data.rows import RowDataset
from mlmx.errors import Problem, UserError, user_error
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import Pooling
from mlmx.objectives.contrast import Similarity
from mlmx.objectives.objective import Objective
from mlmx.tasks.bi_encoder import BiEncoder, QueryRows
from mlmx.tasks.bm25 import BM25
from mlmx.tasks.retrieval import Control, Retrieval
from mlmx.tasks.retrieval_data import Collection, RetrievalData
from mlmx.tasks.texts import text_rows


class TunedRetrieval(Retrieval):
    """Retrieval by a bi-encoder, fine-tuned on the queries of a split with the documents of the other queries as negatives.

    Each pair of a query and a relevant document is an example. Hard negatives are chosen once, before the training: the documents
    that BM25 or the encoder ranks highest for the query and that are not judged relevant. The global batch is one batch of
    negatives, whatever the number of processes, so ``trainer.micro_batch_tokens`` stays null; ``chunk_tokens`` bounds memory.

    Args:
        name: the task's name.
        data: the documents, the queries and what answers them.
        train_split: the split to fine-tune on.
        splits: the splits to judge.
        pooling: how states of the last layer become a text's embedding.
        similarity: ``cosine`` or ``dot``, the inner product.
        temperature: similarities are divided by it.
        negatives: who chooses hard negatives, ``bm25`` or the ``model`` before it is fine-tuned; None where nobody does.
        num_negatives: hard negatives of an example; 0 without ``negatives``.
        skipped_negatives: how many of the highest-ranked are not taken, since many of them are relevant and were not judged.
        chunk_tokens: tokens whose activations are held at a time; None: those of the whole batch.
        query_prefix: is put before each query, such as ``"query: "``.
        document_prefix: is put before each document, such as ``"passage: "``.
        ignore_identical_ids: leave out the document that is called as the query is, as ArguAna and Quora need it.
        bm25: the ranking by words that is judged beside the encoder; None for none.
        controls: encoders that are judged beside it without fine-tuning, see :class:`Retrieval`.
        max_length: tokens of a text, special ones included; longer ones are cut, and the cut pieces reported.
        batch_tokens: tokens per forward when judging.
    """

    def __init__(
        self,
        *,
        name: str,
        data: RetrievalData,
        train_split: str,
        splits: tuple[str, ...],
        pooling: Pooling,
        similarity: Similarity,
        temperature: PositiveFloat,
        negatives: Literal["bm25", "model"] | None,
        num_negatives: NonNegative,
        skipped_negatives: NonNegative,
        chunk_tokens: Positive | None,
        query_prefix: str,
        document_prefix: str,
        ignore_identical_ids: bool,
        bm25: BM25 | None,
        controls: tuple[Control, ...],
        max_length: Positive,
        batch_tokens: Positive,
    ) -> None:
        super().__init__(
            name=name,
            data=data,
            splits=splits,
            layer="last",
            width=None,
            pooling=pooling,
            similarity=similarity,
            lexical=None,
            query_prefix=query_prefix,
            document_prefix=document_prefix,
            ignore_identical_ids=ignore_identical_ids,
            bm25=bm25,
            controls=controls,
            max_length=max_length,
            batch_tokens=batch_tokens,
        )
        problems = []
        if (negatives is None) != (num_negatives == 0):
            message = "set negatives and a num_negatives above 0, or null and 0."
            problems.append(Problem(f"task.{name}.num_negatives", message))
        if negatives is None and skipped_negatives:
            problems.append(Problem(f"task.{name}.skipped_negatives", "has no effect without negatives; set it to 0."))
        if negatives == "bm25" and bm25 is None:
            problems.append(Problem(f"task.{name}.bm25", "is null, and negatives=bm25 needs it."))
        if problems:
            raise UserError(problems)
        self.train_split = train_split
        self.pooling: Pooling = pooling
        self.similarity: Similarity = similarity
        self.temperature = temperature
        self.negatives = negatives
        self.num_negatives = num_negatives
        self.skipped_negatives = skipped_negatives
        self.chunk_tokens = chunk_tokens

    def check_data(self) -> None:
        self.data.load(self.train_split)
        super().check_data()

    def objective(self, encoder: Encoder) -> Objective:
        return BiEncoder(
            encoder,
            pooling=self.pooling,
            similarity=self.similarity,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
        )

    def training_rows(self, encoder: Encoder) -> RowDataset:
        collection = self.data.load(self.train_split)
        number = {document: i for i, document in enumerate(collection.document_ids)}
        relevant = [
            [number[document] for document, grade in collection.judged[query].items() if grade > 0]
            for query in collection.query_ids
        ]
        negatives = self._hard_negatives(encoder, collection, relevant)
        pairs = [(query, document) for query, documents in enumerate(relevant) for document in documents]
        examples = np.array([[query, document, *negatives[query]] for query, document in pairs], np.int64)
        # Only documents of examples are tokenised. Texts are numbered through, queries first.
        used, places = np.unique(examples[:, 1:], return_inverse=True)
        first = len(collection.queries)
        examples[:, 1:] = first + places.reshape(len(examples), -1)
        place_of = {document: first + place for place, document in enumerate(used.tolist())}
        embedding = self.embedding.resolved(encoder, task=self.name)
        texts = [embedding.prompts["query"] + text for text in collection.queries]
        texts += [embedding.prompts["document"] + collection.documents[document] for document in used.tolist()]
        rows = text_rows(encoder, texts, max_length=embedding.max_length, task=self.name, what="queries and documents")
        return QueryRows(rows, examples, [[place_of[document] for document in relevant[query]] for query, _ in pairs])

    def _hard_negatives(self, encoder: Encoder, collection: Collection, relevant: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        # (Q, num_negatives)
        if self.num_negatives == 0:
            return np.zeros((len(relevant), 0), np.int64)
        depth = self.skipped_negatives + self.num_negatives + max(map(len, relevant))
        if self.negatives == "bm25":
            assert self.bm25 is not None, "the constructor checks it"
            found = self.bm25.search(collection.queries, collection.documents, depth)
        else:
            found = self._search(encoder, collection, depth)
        chosen = []
        for ranked, documents in zip(found.indices.tolist(), relevant, strict=True):
            others = [document for document in ranked if document not in documents]
            chosen.append(others[self.skipped_negatives :][: self.num_negatives])
        if min(map(len, chosen)) < self.num_negatives:
            message = f"{self.num_negatives} hard negatives cannot be found among {len(collection.documents)} documents."
            raise user_error(f"task.{self.name}.num_negatives", message)
        return np.array(chosen, np.int64)
