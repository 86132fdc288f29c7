"""Training one encoder for queries and documents: what it reads, and the objective."""

# S examples of a batch, E texts of an example, N texts, M documents of all processes, D width, R relevant documents

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import RowDataset, TokenRows
from mlmx.data.rows_from_text import TextRows
from mlmx.keyed import fold
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import Pooling, train_pooling
from mlmx.objectives.contrast import Similarity, contrastive_loss, embed_rows, gather_rows
from mlmx.objectives.objective import Objective, Output

TERM = "retrieval"

_NO_DOCUMENT = -1


class QueryRows(RowDataset):
    """Queries with a relevant document and hard negatives each: one example is ``E`` rows of tokens.

    ``take`` returns the texts of each example one after the other: the query, its document, the negatives. Their ``row_ids`` are
    the numbers of the texts, so that equal documents are known as such; ``labels`` are the documents relevant to each query,
    (S, R), filled up with -1.

    Attributes:
        num_truncated: pieces that did not fit.
    """

    def __init__(self, texts: TextRows, examples: NDArray[np.int64], relevant: Sequence[Sequence[int]]) -> None:
        """Take down the examples.

        Args:
            texts: all queries and documents.
            examples: (number of examples, E) texts: the query, a relevant document, and E - 2 documents that are not relevant.
            relevant: for each example, all documents relevant to its query.
        """
        self.texts = texts
        self.examples = examples
        self.relevant = relevant
        self.lengths = texts.lengths[examples].sum(axis=1).astype(np.int32)
        self.num_truncated = texts.num_truncated

    def take(self, indices: NDArray[np.int64]) -> TokenRows:
        relevant = [self.relevant[i] for i in indices.tolist()]
        labels = np.full((len(relevant), max(map(len, relevant), default=0)), _NO_DOCUMENT, np.int64)
        for row, documents in zip(labels, relevant, strict=True):
            row[: len(documents)] = documents
        return replace(self.texts.take(self.examples[indices].ravel()), labels=labels)


class BiEncoderCollator(Collator):
    """Packs the texts of examples, and counts the queries."""

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        assert rows.labels is not None, "rows to fine-tune on carry labels"
        num_examples = len(rows.labels)
        examples_SE = rows.row_ids.reshape(num_examples, -1)
        keys = fold(context.keys[:, None], np.arange(examples_SE.shape[1])).ravel()
        return packed_batch(
            rows,
            replace(context, keys=keys),
            counts={TERM: num_examples},
            documents=examples_SE[:, 1:],
            relevant=rows.labels.astype(np.int64),
        )


class BiEncoder(Objective):
    """Fine-tunes an encoder so that a query lies next to its document.

    Source: dense passage retrieval (Karpukhin et al., arXiv 2004.04906, section 3.2), with one encoder for queries and documents
    and a temperature, as sentence-transformers' ``MultipleNegativesRankingLoss`` has them.

    Terms: ``retrieval``, the summed cross-entropy, in nats, of choosing each query's document among the documents and hard
    negatives of all queries of the global batch; counts queries.

    Shapes: ``documents`` (S, E - 1) int64, which documents the rows of an example are beside its query; ``relevant`` (S, R) int64,
    the documents relevant to each query, filled up with -1.

    Deviations: a document of the batch that is relevant to another query as well is no negative of it.

    Args:
        encoder: the encoder; its language-model head is dropped.
        pooling: how states become a text's embedding.
        similarity: ``cosine`` or ``dot``, the inner product.
        temperature: similarities are divided by it.
        chunk_tokens: tokens whose activations are held at a time; the whole batch if None. See ``mlmx.objectives.contrast``.
    """

    batch_coupled = True

    def __init__(
        self, encoder: Encoder, *, pooling: Pooling, similarity: Similarity, temperature: float, chunk_tokens: int | None
    ) -> None:
        super().__init__()
        train_pooling(encoder, pooling, normalize=similarity == "cosine", where="task.pooling")
        encoder.drop_head()
        self.encoder = encoder
        self.weights = {TERM: 1.0}
        self.pooling: Pooling = pooling
        self.similarity: Similarity = similarity
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens

    def collator(self) -> Collator:
        return BiEncoderCollator()

    def forward(self, batch: Batch) -> Output:
        documents_SP, relevant_SR = batch.tensors["documents"], batch.tensors["relevant"]
        num_examples, num_documents = documents_SP.shape
        embeddings = embed_rows(self.encoder, batch, pooling=self.pooling, chunk_tokens=self.chunk_tokens)
        if self.similarity == "cosine":
            embeddings = F.normalize(embeddings, dim=-1)
        embeddings_SED = embeddings.view(num_examples, 1 + num_documents, -1)
        if not batch.counted:
            # Another process has these examples, and everybody sees them there.
            embeddings_SED, documents_SP, relevant_SR = embeddings_SED[:0], documents_SP[:0], relevant_SR[:0]
        candidates_MD, first = gather_rows(embeddings_SED[:, 1:].flatten(0, 1))
        candidates_M = gather_rows(documents_SP.reshape(-1, 1))[0].squeeze(1)
        targets_S = first + num_documents * torch.arange(len(documents_SP), device=candidates_M.device)
        left_out_SM = (relevant_SR[:, :, None] == candidates_M).any(dim=1)
        left_out_SM[torch.arange(len(targets_S), device=targets_S.device), targets_S] = False
        loss, correct = contrastive_loss(
            embeddings_SED[:, 0], candidates_MD, targets_S, temperature=self.temperature, left_out_NM=left_out_SM
        )
        return Output({TERM: loss}, {"accuracy": (correct, torch.tensor(len(targets_S), device=correct.device))})
