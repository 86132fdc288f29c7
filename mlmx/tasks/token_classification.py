"""Classifying words: the objective that fine-tunes an encoder for it, and its predictions."""

# S rows, T packed tokens, D width, C classes

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import AutoModelForTokenClassification

from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import TokenRows
from mlmx.data.rows_from_text import IGNORED, WordRows
from mlmx.errors import user_error
from mlmx.models.encoder import Encoder
from mlmx.models.head import LanguageModelHead
from mlmx.models.inference import by_batch
from mlmx.models.quiet import quiet_transformers
from mlmx.objectives.objective import Objective, Output

TERM = "tagging"


class TokenClassificationCollator(Collator):
    """Packs rows with a class on the first token of each word."""

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        assert rows.labels is not None, "rows to fine-tune on carry labels"
        labels = rows.labels.astype(np.int64)
        return packed_batch(rows, context, counts={TERM: int((labels != IGNORED).sum())}, labels=labels)


class TokenClassification(Objective):
    """Fine-tunes an encoder to tell the class of each word from the state of its first token.

    Source: the usual tagger on BERT (arXiv 1810.04805, section 5.3), with the head that Transformers gives the encoder's family, so
    that the result is a checkpoint of its ``AutoModelForTokenClassification``.

    Terms: ``tagging``, the summed cross-entropy of the words' classes in nats; counts words.

    Shapes: ``labels`` (T,) int64, -100 but on first tokens of words.

    Deviations: none.

    Args:
        encoder: the encoder; its language-model head is dropped.
        labels: names of the C classes.

    Raises:
        UserError: if Transformers has no tagger of the encoder's family.
    """

    def __init__(self, encoder: Encoder, *, labels: Sequence[str]) -> None:
        super().__init__()
        encoder.drop_head()
        self.encoder = encoder
        self.weights = {TERM: 1.0}
        config = copy.deepcopy(encoder.base.config)
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        try:
            tagger = AutoModelForTokenClassification.from_config(config)
        except ValueError as error:
            raise user_error("model", f"Transformers has no token classifier for {config.model_type}: {error}") from error
        # The adapter takes any head off its model, not only one over the vocabulary.
        self.head = LanguageModelHead(tagger)

    def collator(self) -> Collator:
        return TokenClassificationCollator()

    def forward(self, batch: Batch) -> Output:
        labels_T = batch.tensors["labels"]
        labelled = labels_T != IGNORED
        labels = labels_T[labelled]
        logits = self.head(self.encoder(batch)[labelled]).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        correct = (logits.argmax(dim=1) == labels).sum()
        return Output({TERM: loss}, {"accuracy": (correct, torch.tensor(len(labels), device=correct.device))})

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            self.head.save(folder, self.encoder.base)
        self.encoder.tokenizer.save_pretrained(folder)


def predict_words(model: TokenClassification, rows: WordRows, *, batch_tokens: int) -> list[dict[int, int]]:
    """Return for each sentence: position of the word -> predicted class; words without tokens are left out."""
    model.eval()
    device = next(model.parameters()).device

    def tagged(indices: NDArray[np.int64]) -> NDArray[np.generic]:
        # (T,) classes of all tokens: which of them begin a word of which sentence is not theirs to say.
        batch = packed_batch(rows.take(indices), BatchContext(keys=np.zeros(len(indices), np.int64)), counts={}).to(device)
        classes: NDArray[np.int64] = model.head(model.encoder(batch)).argmax(dim=1).cpu().numpy()
        return classes

    predictions: list[dict[int, int]] = [{} for _ in range(rows.num_sentences)]
    for indices, classes in by_batch(rows, tagged, batch_tokens=batch_tokens, what="tag"):
        positions = rows.word_positions(indices)
        first = np.flatnonzero(positions >= 0)
        sentences = rows.sentences[indices].repeat(rows.lengths[indices])[first]
        for sentence, word, label in zip(sentences.tolist(), positions[first].tolist(), classes[first].tolist(), strict=True):
            predictions[sentence][word] = label
    return predictions
