"""The masked-language-model loss under one fixed mask, the same for every objective."""

# S rows, T packed tokens, P selected tokens, D width, V vocabulary

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mlmx import keyed
from mlmx.build import NonNegative, Positive, Ratio
from mlmx.data.batch import BatchContext, packed_batch
from mlmx.data.corpus import Corpus
from mlmx.data.rows_from_text import TextRows
from mlmx.errors import user_error
from mlmx.masking.corrupt import Corruption, corrupt
from mlmx.masking.select import BernoulliTokens
from mlmx.masking.units import Draws
from mlmx.models.cross_entropy import losses_and_hits
from mlmx.models.encoder import Encoder
from mlmx.models.inference import by_batch
from mlmx.objectives.objective import Objective
from mlmx.tasks.task import Evaluation, Task, ratio_scores
from mlmx.tasks.texts import held_out_examples, text_rows


class EvalMask(Task):
    """Loss (nats) and accuracy per piece under a fixed mask, whatever the objective masked in training.

    Training losses of objectives that mask different tokens, or different numbers of them, cannot be compared; this one can,
    between encoders of one tokenizer. Each token is selected by itself with probability ``mask_ratio``, by keys that depend on
    ``seed`` and the row alone, so all encoders have to predict the same tokens from the same rest. By default all of them become
    the mask token: with random and kept ones among them, the loss would also measure how well an objective taught to tell them.

    Where the corpus has several languages, each has a loss of its own beside the common one.

    Args:
        name: the task's name.
        corpus: held-out text.
        split: the name of this data in the scores.
        view: ``segment``: each sentence by itself; ``pair``: both sides of a pair in one row, so that a side may help the other.
        max_examples: how many examples of the corpus to use, from the first on; all if None.
        seed: of the mask; not the run's, so that all runs are judged by the same one.
        mask_ratio: in [0, 1].
        corruption: what selected tokens are replaced by.
        max_length: tokens of a row, special ones included; longer ones are cut, and the cut pieces reported.
        batch_tokens: tokens per forward.
    """

    def __init__(
        self,
        *,
        name: str,
        corpus: Corpus,
        split: str,
        view: Literal["segment", "pair"],
        max_examples: Positive | None,
        seed: NonNegative,
        mask_ratio: Ratio,
        corruption: Corruption,
        max_length: Positive,
        batch_tokens: Positive,
    ) -> None:
        if view == "pair" and not corpus.parallel:
            raise user_error(f"task.{name}.view", "pairs need a parallel corpus, and this one has none.")
        self.name = name
        self.corpus = corpus
        self.split = split
        self.view: Literal["segment", "pair"] = view
        self.max_examples = max_examples
        self.seed = seed
        self.select = BernoulliTokens(mask_ratio)
        self.corruption = corruption
        self.max_length = max_length
        self.batch_tokens = batch_tokens

    def check_data(self) -> None:
        self._texts()

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        encoder = model.encoder if isinstance(model, Objective) else model
        if encoder.head is None:
            message = "judges by a language-model head, and this encoder has none; pretrain it, or take this task out."
            raise user_error(f"task.{self.name}", message)
        if encoder.vocabulary.mask_id is None:
            raise user_error(f"task.{self.name}", "needs a mask token, and this tokenizer has none.")
        texts, pairs, languages = self._texts()
        what = "rows of the corpus"
        rows = text_rows(encoder, texts, max_length=self.max_length, task=self.name, what=what, pairs=pairs)
        losses, hits, counts = self._judge(encoder, rows)
        sides = [texts] if pairs is None else [texts, pairs]
        records = self._records(losses, hits, counts, languages, sides)
        scores = ratio_scores(records, task=self.name, lower_is_better="loss")
        if not all(score.num_examples for score in scores):
            raise user_error(f"task.{self.name}.mask_ratio", "selects no token at all.")
        # By chance each piece of the vocabulary is as likely.
        size = encoder.vocabulary.size
        told = [replace(score, trivial=math.log(size) if score.metric.startswith("loss") else 1 / size) for score in scores]
        # Losses before accuracies, and languages in the order of their codes.
        told.sort(key=lambda score: (score.higher_is_better, score.metric))
        return Evaluation(scores=told, predictions=records)

    def _texts(self) -> tuple[list[str], list[str] | None, list[str]]:
        # The texts, their partners in a pair, and their languages.
        examples = held_out_examples(self.corpus, self.max_examples, task=self.name)
        if self.view == "pair":
            pairs = [example.segments for example in examples]
            return (
                [first.text for first, _ in pairs],
                [second.text for _, second in pairs],
                ["-".join(self.corpus.languages)] * len(pairs),
            )
        segments = [segment for example in examples for segment in example.segments]
        return [segment.text for segment in segments], None, [segment.language for segment in segments]

    def _judge(self, encoder: Encoder, rows: TextRows) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        # (N,) per row: summed loss, correct predictions, selected tokens.
        encoder.eval()
        device = next(encoder.parameters()).device
        mask_id, ordinary_ids = encoder.vocabulary.mask_id, encoder.vocabulary.ordinary_ids
        head = encoder.head
        assert mask_id is not None
        assert head is not None

        def judged(indices: NDArray[np.int64]) -> NDArray[np.generic]:
            # (S, 3) loss, correct predictions, selected tokens.
            taken = rows.take(indices)
            keys = keyed.row_keys(seed=self.seed, epoch=0, row_ids=indices)
            draws = Draws(keys)
            selection = self.select(taken, draws)
            input_ids = corrupt(
                taken.input_ids,
                selection,
                draws,
                corruption=self.corruption,
                mask_id=mask_id,
                ordinary_ids=ordinary_ids,
            )
            batch = packed_batch(taken, BatchContext(keys=keys), counts={}, input_ids=input_ids).to(device)
            positions = torch.from_numpy(selection.positions).to(device)
            targets = torch.from_numpy(taken.input_ids[selection.positions]).to(device)
            hidden_PD = encoder(batch)[positions]
            loss_P, hit_P = losses_and_hits(head, hidden_PD, targets, vocab_size=encoder.vocabulary.size)
            of_token_P3 = np.stack([loss_P.cpu().numpy(), hit_P.cpu().numpy(), np.ones(len(loss_P))], axis=1, dtype=np.float64)
            of_row_S3 = np.zeros((len(indices), 3))
            np.add.at(of_row_S3, selection.row, of_token_P3)
            return of_row_S3

        of_row_N3 = np.zeros((len(rows), 3))
        for indices, of_row_S3 in by_batch(rows, judged, batch_tokens=self.batch_tokens, what="predict masked words"):
            of_row_N3[indices] = of_row_S3
        return of_row_N3[:, 0], of_row_N3[:, 1].astype(np.int64), of_row_N3[:, 2].astype(np.int64)

    def _records(
        self,
        losses: NDArray[np.float64],
        hits: NDArray[np.int64],
        counts: NDArray[np.int64],
        languages: list[str],
        sides: list[list[str]],
    ) -> list[dict[str, Any]]:
        several = len(set(languages)) > 1
        records = []
        for i, language in enumerate(languages):
            suffixes = ["", f"_{language}"] if several else [""]
            ratios = {f"loss{suffix}": [float(losses[i]), int(counts[i])] for suffix in suffixes}
            ratios |= {f"accuracy{suffix}": [int(hits[i]), int(counts[i])] for suffix in suffixes}
            records.append({"id": str(i), "split": self.split, "ratios": ratios, "texts": [side[i] for side in sides]})
        return records
