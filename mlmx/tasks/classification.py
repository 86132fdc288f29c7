"""Classifying sequences: the objective that fine-tunes an encoder for it, and its predictions."""

# S rows, T packed tokens, D width, C classes

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import RowDataset, TokenRows
from mlmx.models.encoder import Encoder, dropout_of
from mlmx.models.pooling import batches_by_length, pool
from mlmx.objectives.objective import Objective, Output

TERM = "classification"

# Standard deviation of a fresh classifier's weights, as in BERT's heads.
_INITIAL_STD = 0.02


class SequenceClassificationCollator(Collator):
    """Packs rows with one class each."""

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        assert rows.labels is not None, "rows to fine-tune on carry labels"
        return packed_batch(rows, context, counts={TERM: rows.num_rows}, labels=rows.labels.astype(np.int64))


class SequenceClassification(Objective):
    """Fine-tunes an encoder to tell the class of a sequence.

    Source: the usual classifier on BERT (arXiv 1810.04805, section 3.2): pooled states, dropout, one linear layer.

    Terms: ``classification``, the summed cross-entropy of the rows' classes in nats; counts rows.

    Shapes: ``labels`` (S,) int64.

    Deviations: BERT's pooler (a dense layer and tanh, pretrained by next-sentence prediction) is left out, since most encoders here
    have none.

    Args:
        encoder: the encoder; its language-model head is dropped.
        num_classes: C.
        pooling: ``cls`` the first token's state, ``mean`` the mean over the row's tokens.
    """

    def __init__(self, encoder: Encoder, *, num_classes: int, pooling: Literal["mean", "cls"]) -> None:
        super().__init__()
        encoder.drop_head()
        self.encoder = encoder
        self.weights = {TERM: 1.0}
        self.pooling = pooling
        # The same as the encoder's; a trainer that sets dropout sets both.
        self.dropout = nn.Dropout(dropout_of(encoder))
        self.classifier = nn.Linear(encoder.hidden_size, num_classes)
        nn.init.normal_(self.classifier.weight, std=_INITIAL_STD)
        nn.init.zeros_(self.classifier.bias)

    def collator(self) -> Collator:
        return SequenceClassificationCollator()

    def forward(self, batch: Batch) -> Output:
        logits_SC = self.logits(batch)
        labels_S = batch.tensors["labels"]
        loss = F.cross_entropy(logits_SC.float(), labels_S, reduction="sum")
        correct = (logits_SC.argmax(dim=1) == labels_S).sum()
        return Output({TERM: loss}, {"accuracy": (correct, torch.tensor(len(labels_S), device=correct.device))})

    def logits(self, batch: Batch) -> Tensor:
        """Return the (S, C) logits of the rows."""
        pooled_SD = pool(self.encoder(batch), batch.tensors["cu_seqlens"], self.pooling)
        logits_SC: Tensor = self.classifier(self.dropout(pooled_SD))
        return logits_SC


@torch.inference_mode()
def predict(model: SequenceClassification, rows: RowDataset, *, batch_tokens: int) -> NDArray[np.int64]:
    """Return the (N,) predicted classes of labelled rows."""
    model.eval()
    device = next(model.parameters()).device
    predictions = np.empty(len(rows), np.int64)
    collator = model.collator()
    for indices in batches_by_length(rows.lengths, batch_tokens):
        batch = collator(rows.take(indices), BatchContext(keys=np.zeros(len(indices), np.int64))).to(device)
        predictions[indices] = model.logits(batch).argmax(dim=1).cpu().numpy()
    return predictions
