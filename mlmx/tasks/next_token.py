"""The next-token loss on held-out text, by position, and that on its cipher."""

# S rows, N all rows, T tokens of all rows, P predictions, K bins of positions, D width

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mlmx import keyed
from mlmx.build import NonNegative, Positive
from mlmx.data.batch import Batch, BatchContext
from mlmx.data.corpus import Corpus
from mlmx.data.rows_from_text import TextRows
from mlmx.data.vocabulary import Vocabulary
from mlmx.errors import user_error
from mlmx.models.cross_entropy import losses_and_hits
from mlmx.models.drawn_embedding import std_of_exported
from mlmx.models.encoder import Encoder
from mlmx.models.inference import by_batch
from mlmx.objectives.clm import NextTokenCollator
from mlmx.objectives.lexinvariant import drawn_predictions
from mlmx.objectives.objective import Objective
from mlmx.tasks.task import Evaluation, Task, ratio_scores
from mlmx.tasks.texts import held_out_examples, text_rows


class NextToken(Task):
    """Loss (nats per token) of predicting each token from those before it, whatever the encoder's own direction is.

    ``loss`` is over all tokens of a row but its first, special ones included; ``loss_at_1``, ``loss_at_2_to_3``,
    ``loss_at_4_to_7``, ... are over those with so many tokens before them, the row's first special token among these. Short texts
    have no part in the later ones. Each text is a row.

    An encoder that ``lexinvariant`` has trained reads the text by vectors drawn anew for each row, and predicts by them; any other
    one by its own embeddings and head. The scores' ``embeddings`` say which.

    The split ``<split>_cipher`` is the same text with each ordinary piece replaced by another one, the same everywhere. What
    an encoder knows of pieces is wrong there; what it gains from one position to the next is learned from the row itself.

    Source:
        Huang et al. 2023, Lexinvariant Language Models, NeurIPS, arXiv:2305.16349.

    Args:
        name: the task's name.
        corpus: held-out text.
        split: the name of this data in the scores.
        max_examples: how many examples of the corpus to use, from the first on; all if None.
        cipher: seed of the substitution cipher; None: the text alone is judged.
        seed: of drawn vectors; not the run's, so that all runs are judged by the same ones.
        max_length: tokens of a row, special ones included; longer ones are cut, and the cut pieces reported.
        batch_tokens: tokens per forward.
    """

    def __init__(
        self,
        *,
        name: str,
        corpus: Corpus,
        split: str,
        max_examples: Positive | None,
        cipher: NonNegative | None,
        seed: NonNegative,
        max_length: Positive,
        batch_tokens: Positive,
    ) -> None:
        self.name = name
        self.corpus = corpus
        self.split = split
        self.max_examples = max_examples
        self.cipher = cipher
        self.seed = seed
        self.max_length = max_length
        self.batch_tokens = batch_tokens

    def check_data(self) -> None:
        self._texts()

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        encoder = model.encoder if isinstance(model, Objective) else model
        encoder.require("causal")
        std = std_of_exported(encoder.base.get_input_embeddings().weight)
        if std is None and encoder.head is None:
            message = "judges by a language-model head, and this encoder has none; pretrain it by clm, or take this task out."
            raise user_error(f"task.{self.name}", message)
        texts = self._texts()
        rows = text_rows(encoder, texts, max_length=self.max_length, task=self.name, what="rows of the corpus")
        losses_of = _by_head(encoder) if std is None else _by_drawn_vectors(encoder, std)
        records = self._records(self.split, self._judge(encoder, rows, losses_of, None), texts)
        if self.cipher is not None:
            records += self._records(f"{self.split}_cipher", self._judge(encoder, rows, losses_of, self.cipher), texts)
        scores = ratio_scores(records, task=self.name, lower_is_better="loss")
        # By chance each piece of the vocabulary is as likely.
        trivial, settings = math.log(encoder.vocabulary.size), {"embeddings": "learned" if std is None else "drawn"}
        return Evaluation(scores=[replace(score, trivial=trivial, settings=settings) for score in scores], predictions=records)

    def _texts(self) -> list[str]:
        examples = held_out_examples(self.corpus, self.max_examples, task=self.name)
        return [segment.text for example in examples for segment in example.segments]

    def _judge(
        self, encoder: Encoder, rows: TextRows, losses_of: Callable[[Batch], Tensor], cipher: int | None
    ) -> NDArray[np.float64]:
        # (N, K, 2) per row and bin: summed loss, predictions. A prediction from 2**k to 2**(k+1) - 1 tokens belongs to bin k.
        encoder.eval()
        device = next(encoder.parameters()).device
        num_bins = int(rows.lengths.max() - 1).bit_length()
        collator = NextTokenCollator()
        replaced_by = None if cipher is None else substitution(encoder.vocabulary, seed=cipher)

        def judged(indices: NDArray[np.int64]) -> NDArray[np.generic]:
            taken = rows.take(indices)
            if replaced_by is not None:
                taken = replace(taken, input_ids=replaced_by[taken.input_ids])
            keys = keyed.row_keys(seed=self.seed, epoch=0, row_ids=indices)
            batch = collator(taken, BatchContext(keys=keys))
            selected = batch.tensors["selected"].numpy()
            bins_P = np.frexp(taken.places[selected])[1] - 1
            losses_P = losses_of(batch.to(device)).cpu().numpy()
            sums_SK2 = np.zeros((len(indices), num_bins, 2))
            np.add.at(sums_SK2, (taken.row_of_token[selected], bins_P), np.stack([losses_P, np.ones(len(losses_P))], axis=1))
            return sums_SK2

        sums_NK2 = np.zeros((len(rows), num_bins, 2))
        settings = (cipher, self.seed)
        for indices, sums_SK2 in by_batch(
            rows, judged, batch_tokens=self.batch_tokens, what="predict next tokens", settings=settings
        ):
            sums_NK2[indices] = sums_SK2
        return sums_NK2

    def _records(self, split: str, sums_NK2: NDArray[np.float64], texts: list[str]) -> list[dict[str, Any]]:
        names = ["loss_at_1", *(f"loss_at_{2**k}_to_{2 ** (k + 1) - 1}" for k in range(1, sums_NK2.shape[1]))]
        records = []
        for i, (sums_K2, text) in enumerate(zip(sums_NK2, texts, strict=True)):
            loss, num_predictions = sums_K2.sum(axis=0)
            ratios = {"loss": [float(loss), int(num_predictions)]}
            ratios |= {name: [float(part), int(whole)] for name, (part, whole) in zip(names, sums_K2, strict=True) if whole}
            records.append({"id": str(i), "split": split, "ratios": ratios, "texts": [text]})
        return records


def substitution(vocabulary: Vocabulary, *, seed: int) -> NDArray[np.int64]:
    """Return by which id each id is replaced, (V,): a permutation of the ordinary pieces, while special tokens stay."""
    ordinary = vocabulary.ordinary_ids
    replaced_by = np.arange(vocabulary.size)
    replaced_by[ordinary] = ordinary[keyed.permutation(len(ordinary), seed=seed, name="cipher")]
    return replaced_by


def _by_head(encoder: Encoder) -> Callable[[Batch], Tensor]:
    head = encoder.head
    assert head is not None

    def losses_of(batch: Batch) -> Tensor:
        # (P,) nats.
        hidden_PD = encoder(batch, direction="causal")[batch.tensors["selected"] - 1]
        return losses_and_hits(head, hidden_PD, batch.tensors["targets"], vocab_size=encoder.vocabulary.size)[0]

    return losses_of


def _by_drawn_vectors(encoder: Encoder, std: float) -> Callable[[Batch], Tensor]:
    return lambda batch: drawn_predictions(encoder, batch, std=std, reduction="none")[0]
