"""Translation by a small model that is trained from scratch: what a corpus of pairs is worth."""

# S rows of a batch, M tokens of the longest translation, N sentences

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import sacrebleu
from numpy.typing import NDArray

from mlmx.build import NonNegativeFloat, Positive, Ratio
from mlmx.data.batch import BatchContext, packed_batch
from mlmx.data.corpora.parallel import ParallelCorpus
from mlmx.data.corpus import Corpus
from mlmx.data.rows import RowDataset
from mlmx.data.rows_from_text import TextRows
from mlmx.errors import Problem, UserError, user_error
from mlmx.models.encoder import Encoder
from mlmx.models.inference import by_batch
from mlmx.models.load import Scratch
from mlmx.objectives.objective import Objective
from mlmx.tasks.curation import KEPT
from mlmx.tasks.task import Evaluation, Score, Task
from mlmx.tasks.translator import PairRows, Translator

log = logging.getLogger(__name__)

SPLIT = "test"


class Translation(Task):
    """Trains a small translation model from scratch on a corpus of pairs, and translates other sentences with it.

    It measures the corpus: of the encoder, only the tokenizer is used. So what different scores of a curation keep is compared by
    what can be learned from it, at the same cost. chrF and BLEU are those of ``sacrebleu`` with its defaults (the signature stands
    with each score), from 0 to 100; beside them stands what copying the source gets.

    Source: the WMT shared task on parallel corpus filtering (Koehn et al. 2020), which judges corpora so.

    Args:
        name: the task's name.
        train: a parallel corpus, or the name of a curation task of the run: the pairs that it keeps.
        test: the parallel corpus to judge on, from the first language of ``train`` to the second.
        num_layers: of the encoder, and of the decoder.
        hidden_size: their width; a multiple of ``num_heads``.
        num_heads: attention heads per layer.
        intermediate_size: width inside a feed-forward layer.
        initializer_range: standard deviation of the initial weights.
        max_length: tokens of a sentence, special ones included; longer ones are cut, and the cut pieces reported. No translation is
            longer.
        label_smoothing: part of the probability that is spread evenly over the vocabulary in training.
        num_beams: of the search for a translation; 1 is greedy.
        batch_tokens: tokens of sources that are translated at a time.
    """

    def __init__(
        self,
        *,
        name: str,
        train: Corpus | str,
        test: Corpus,
        num_layers: Positive,
        hidden_size: Positive,
        num_heads: Positive,
        intermediate_size: Positive,
        initializer_range: NonNegativeFloat,
        max_length: Positive,
        label_smoothing: Ratio,
        num_beams: Positive,
        batch_tokens: Positive,
    ) -> None:
        self.name = name
        corpora = {"test": test, **({"train": train} if isinstance(train, Corpus) else {})}
        problems = [
            Problem(f"task.{name}.{role}", "translation needs pairs of sentences in two languages, and it has none.")
            for role, corpus in corpora.items()
            if not corpus.parallel or len(corpus.languages) != 2
        ]
        if not problems and len({tuple(corpus.languages) for corpus in corpora.values()}) > 1:
            both = [" to ".join(corpus.languages) for corpus in corpora.values()]
            problems.append(Problem(f"task.{name}.test", f"is from {both[0]}, and train from {both[1]}."))
        if hidden_size % num_heads:
            problems.append(Problem(f"task.{name}.hidden_size", f"{hidden_size} is not a multiple of num_heads={num_heads}."))
        if problems:
            raise UserError(problems)
        self.train = train
        self.test = test
        self.max_length = max_length
        self.label_smoothing = label_smoothing
        self.num_beams = num_beams
        self.batch_tokens = batch_tokens
        self._sizes: dict[str, Any] = {
            "num_layers": num_layers,
            "hidden_size": hidden_size,
            "num_heads": num_heads,
            "intermediate_size": intermediate_size,
            "initializer_range": initializer_range,
            "max_length": max_length,
        }

    def objective(self, encoder: Encoder) -> Objective:
        fresh = Scratch(encoder.tokenizer, architecture="bert", attention="bidirectional", tokenizer=None, **self._sizes).build()
        return Translator(fresh, label_smoothing=self.label_smoothing, num_beams=self.num_beams)

    def training_rows(self, encoder: Encoder) -> RowDataset:
        sources, targets = self._sentences(self._training_corpus(), "train")
        return PairRows(self._rows(encoder, [*sources, *targets], "training sentences"))

    def check_data(self) -> None:
        self._sentences(self.test, "test")
        if isinstance(self.train, Corpus):
            self._sentences(self.train, "train")

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        assert isinstance(model, Translator)
        sources, references = self._sentences(self.test, "test")
        translations = self._translations(model, self._rows(model.encoder, sources, "sources"))
        scores = []
        for metric, scorer in (("chrf", sacrebleu.CHRF()), ("bleu", sacrebleu.BLEU())):
            value, trivial = (scorer.corpus_score(texts, [references]).score for texts in (translations, sources))
            scores.append(
                Score(
                    task=self.name,
                    split=SPLIT,
                    metric=metric,
                    value=value,
                    num_examples=len(sources),
                    higher_is_better=True,
                    trivial=trivial,
                    settings={"signature": scorer.get_signature().format()},
                )
            )
        records = [
            {
                "id": str(i),
                "split": SPLIT,
                "source": source,
                "reference": reference,
                "translation": translation,
                "texts": [source, reference],
            }
            for i, (source, reference, translation) in enumerate(zip(sources, references, translations, strict=True))
        ]
        return Evaluation(scores=scores, predictions=records)

    def _training_corpus(self) -> Corpus:
        if isinstance(self.train, Corpus):
            return self.train
        kept = self.data_of["train"] / KEPT
        if not kept.is_file():
            raise user_error(f"task.{self.name}.train", f"{self.train!r} is no curation: it keeps no pairs.")
        return ParallelCorpus(path=str(kept), format="tsv", columns=None, header=True, languages=list(self.test.languages))

    def _sentences(self, corpus: Corpus, role: str) -> tuple[list[str], list[str]]:
        pairs = [[segment.text for segment in example.segments] for example in corpus.examples()]
        for reason, number in corpus.skipped.items():
            log.warning("%s: %d pairs of %s skipped: %s", self.name, number, role, reason)
        if not pairs:
            raise user_error(f"task.{self.name}.{role}", "holds no pair.")
        return [source for source, _ in pairs], [target for _, target in pairs]

    def _rows(self, encoder: Encoder, texts: Sequence[str], what: str) -> TextRows:
        rows = TextRows(texts, encoder.tokenizer, encoder.vocabulary, self.max_length)
        if rows.num_truncated_rows:
            lost = sum(rows.num_truncated.values())
            message = "%s: %d of %d %s are longer than max_length=%d; %d pieces are cut off"
            log.warning(message, self.name, rows.num_truncated_rows, len(rows), what, self.max_length, lost)
        return rows

    def _translations(self, model: Translator, rows: TextRows) -> list[str]:
        model.eval()
        device = model.encoder.base.device

        def translated(indices: NDArray[np.int64]) -> NDArray[np.generic]:
            context = BatchContext(keys=np.zeros(len(indices), np.int64))
            found: NDArray[np.generic] = (
                model.translate(packed_batch(rows.take(indices), context, counts={}).to(device)).cpu().numpy()
            )
            return found

        how = (self.num_beams, self.max_length)
        tokens: list[NDArray[np.generic]] = [np.empty(0)] * len(rows)
        for indices, ids_SM in by_batch(
            rows, translated, batch_tokens=self.batch_tokens, what=f"{self.name}: translate", settings=how
        ):
            for i, ids_M in zip(indices.tolist(), ids_SM, strict=True):
                tokens[i] = ids_M
        tokenizer = model.encoder.tokenizer
        return [tokenizer.decode(ids_M, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids_M in tokens]
