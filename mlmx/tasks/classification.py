"""Classifying and scoring sequences: the objectives that fine-tune an encoder for it, and their outputs."""

# S rows of a batch, N rows of the dataset, D width, C outputs per row: classes, or one score

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import RowDataset, TokenRows
from mlmx.models.dropout import dropout_of
from mlmx.models.encoder import Encoder
from mlmx.models.inference import by_batch
from mlmx.models.pooling import pool, require_pooling
from mlmx.objectives.objective import Objective, Output

CLASSIFICATION_TERM = "classification"
REGRESSION_TERM = "regression"

# Standard deviation of a fresh classifier's weights, as in BERT's heads.
_INITIAL_STD = 0.02


class LabelledRowsCollator(Collator):
    """Packs rows with one label each: a class or a score."""

    def __init__(self, term: str) -> None:
        self.term = term

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        assert rows.labels is not None, "rows to fine-tune on carry labels"
        return packed_batch(rows, context, counts={self.term: rows.num_rows}, labels=rows.labels)


class SequenceObjective(Objective):
    """What classification and regression of sequences share: pooled states, dropout, one linear layer.

    Args:
        encoder: the encoder; its language-model head is dropped.
        term: the name of the loss.
        num_outputs: C.
        pooling: ``cls`` the first token's state, ``mean`` the mean over the row's tokens.
    """

    def __init__(self, encoder: Encoder, *, term: str, num_outputs: int, pooling: Literal["mean", "cls"]) -> None:
        super().__init__()
        require_pooling(encoder, pooling, where="task.pooling")
        encoder.drop_head()
        self.encoder = encoder
        self.weights = {term: 1.0}
        self.pooling = pooling
        # The same as the encoder's; a trainer that sets dropout sets both.
        self.dropout = nn.Dropout(dropout_of(encoder))
        self.classifier = nn.Linear(encoder.hidden_size, num_outputs)
        nn.init.normal_(self.classifier.weight, std=_INITIAL_STD)
        nn.init.zeros_(self.classifier.bias)

    def collator(self) -> Collator:
        (term,) = self.weights
        return LabelledRowsCollator(term)

    def outputs(self, batch: Batch) -> Tensor:
        """Return the (S, C) outputs of the rows."""
        pooled_SD = pool(self.encoder(batch), batch.tensors["cu_seqlens"], self.pooling)
        outputs_SC: Tensor = self.classifier(self.dropout(pooled_SD))
        return outputs_SC

    @abstractmethod
    def forward(self, batch: Batch) -> Output: ...


class SequenceClassification(SequenceObjective):
    """Fine-tunes an encoder to tell the class of a sequence.

    Source: the usual classifier on BERT (arXiv 1810.04805, section 3.2): pooled states, dropout, one linear layer.

    Terms: ``classification``, the summed cross-entropy of the rows' classes in nats, each times its class's weight; counts rows.

    Shapes: ``labels`` (S,) int64.

    Deviations: BERT's pooler (a dense layer and tanh, pretrained by next-sentence prediction) is left out, since most encoders here
    have none.

    Args:
        encoder: the encoder; its language-model head is dropped, and the labels are written into its config.
        labels: names of the C classes.
        pooling: ``cls`` the first token's state, ``mean`` the mean over the row's tokens.
        class_weights: (C,) what an example of each class counts; None counts all alike. Weights whose mean over the training
            examples is 1 keep the scale of the loss.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        encoder: Encoder,
        *,
        labels: Sequence[str],
        pooling: Literal["mean", "cls"],
        class_weights: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__(encoder, term=CLASSIFICATION_TERM, num_outputs=len(labels), pooling=pooling)
        weights = None if class_weights is None else torch.from_numpy(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        encoder.base.config.id2label = dict(enumerate(labels))
        encoder.base.config.label2id = {label: i for i, label in enumerate(labels)}

    def forward(self, batch: Batch) -> Output:
        logits_SC = self.outputs(batch)
        labels_S = batch.tensors["labels"]
        loss = F.cross_entropy(logits_SC.float(), labels_S, weight=self.class_weights, reduction="sum")
        correct = (logits_SC.argmax(dim=1) == labels_S).sum()
        return Output({CLASSIFICATION_TERM: loss}, {"accuracy": (correct, torch.tensor(len(labels_S), device=correct.device))})


class SequenceRegression(SequenceObjective):
    """Fine-tunes an encoder to score a sequence, such as how similar the two texts of a pair are.

    Source: STS-B in GLUE's own baselines and in BERT's (arXiv 1810.04805, appendix B.1): a linear layer with one output.

    Terms: ``regression``, the summed squared errors, in the square of the scores' unit; counts rows.

    Shapes: ``labels`` (S,) float32.

    Deviations: as in ``SequenceClassification``.

    Args:
        encoder: the encoder; its language-model head is dropped.
        pooling: ``cls`` the first token's state, ``mean`` the mean over the row's tokens.
    """

    def __init__(self, encoder: Encoder, *, pooling: Literal["mean", "cls"]) -> None:
        super().__init__(encoder, term=REGRESSION_TERM, num_outputs=1, pooling=pooling)

    def forward(self, batch: Batch) -> Output:
        scores_S = self.outputs(batch)[:, 0].float()
        return Output({REGRESSION_TERM: F.mse_loss(scores_S, batch.tensors["labels"], reduction="sum")}, {})


def predict(model: SequenceObjective, rows: RowDataset, *, batch_tokens: int) -> NDArray[np.float32]:
    """Return the (N, C) outputs for labelled rows, whose labels are not looked at."""
    model.eval()
    device = next(model.parameters()).device
    collator = model.collator()

    def of_batch(indices: NDArray[np.int64]) -> NDArray[np.generic]:
        batch = collator(rows.take(indices), BatchContext(keys=np.zeros(len(indices), np.int64))).to(device)
        return model.outputs(batch).float().cpu().numpy()

    outputs = np.empty((len(rows), model.classifier.out_features), np.float32)
    for indices, some in by_batch(rows, of_batch, batch_tokens=batch_tokens, what="classify"):
        outputs[indices] = some
    return outputs
