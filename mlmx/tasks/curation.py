"""Parallel data curation: keeping the good pairs of a noisy corpus, by the similarity of their embeddings."""

# N pairs, S different source sentences, R different target sentences, D width, K pairs kept

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from mlmx.build import Positive
from mlmx.data.corpus import Corpus
from mlmx.errors import Problem, UserError, user_error
from mlmx.keyed import fold, stream, uniform
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import Pooling
from mlmx.objectives.objective import Objective
from mlmx.stage import write_atomically
from mlmx.tasks.curation_filters import Filter
from mlmx.tasks.curation_noise import Noise, Pair
from mlmx.tasks.embedding import Embedding, ResolvedEmbedding
from mlmx.tasks.mining import pair_scores
from mlmx.tasks.search import Floats
from mlmx.tasks.task import Evaluation, Score, Task, ratio_scores

log = logging.getLogger(__name__)

SPLIT = "corpus"
"""The split of the scores: there is only the corpus that is curated."""

KEPT, COUNTS = "kept.tsv", "counts.json"
"""The files of the pairs that are kept and of how many were dropped, in ``data/`` of the stage's directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curated:
    """A corpus whose pairs are scored, and those that are kept.

    Attributes:
        pairs: all of them, in the corpus' order.
        scores: (N,) their scores.
        ranked: (N,) indices of the pairs, best first; of equal ones the first in the corpus.
        kept: (K,) indices of those that are kept, best first.
        dropped: filter -> how many pairs it dropped of those that the filters before it had left.
    """

    pairs: Sequence[Pair]
    scores: Floats
    ranked: NDArray[np.int64]
    kept: NDArray[np.int64]
    dropped: Mapping[str, int]


class Curation(Task):
    """Scores the pairs of a noisy corpus by the similarity of their embeddings, and keeps the best that pass the filters.

    Where the noise is known, because it was put in, the scores tell how well it is found: the area under the ROC curve of good
    pairs against bad ones, of all kinds (``auc``) and of each (``auc_shuffled`` ...), and the precision of the k best
    (``precision_at_k``), both before any filter; and the precision and recall of what is kept. The pairs that are kept are written
    to ``data/kept.tsv`` in the stage's directory, which ``corpus=parallel`` reads.

    Source: LEM's second task; Artetxe and Schwenk, arXiv 1811.01136, section 4.3; filters as in Koehn et al. 2020, the WMT shared
    task on parallel corpus filtering.

    Args:
        name: the task's name.
        corpus: a parallel corpus.
        noise: what is done to it first; null: it is noisy already, and nobody knows where.
        score: of a pair: ``cosine`` of its embeddings, or its ``ratio`` or ``distance`` margin, see ``mlmx.tasks.mining``;
            ``random`` looks at no embedding, as the baseline of all others.
        num_neighbors: k of the margins' neighbourhoods. Without effect on ``cosine`` and ``random``.
        filters: name -> rule, in the order in which they are applied to the pairs, best first; null in the place of one is none.
        num_kept: how many of the pairs that pass are kept; null: all of them.
        precision_at: each k of the precisions of the k best pairs.
        layer: the layer whose states are pooled: 0 the embeddings, ``last`` or a number up to the number of layers, negative
            from the end.
        pooling: how states become a sentence's embedding; None: as the encoder's folder says, see ``mlmx.tasks.embedding``.
        prefix: is put before each sentence, such as ``"query: "``; None: what the encoder's folder says.
        max_length: tokens of a sentence, special ones included; longer ones are cut, and the cut pieces reported. None: as many as
            the encoder's folder says.
        batch_tokens: tokens per forward.
    """

    def __init__(
        self,
        *,
        name: str,
        corpus: Corpus,
        noise: Noise | None,
        score: Literal["cosine", "ratio", "distance", "random"],
        num_neighbors: Positive,
        filters: Mapping[str, Filter | None],
        num_kept: Positive | None,
        precision_at: tuple[Positive, ...],
        layer: int | Literal["last"],
        pooling: Pooling | None,
        prefix: str | None,
        max_length: Positive | None,
        batch_tokens: Positive,
    ) -> None:
        self.name = name
        problems = []
        if not corpus.parallel or len(corpus.languages) != 2:
            problems.append(
                Problem(f"task.{name}.corpus", "what is curated are pairs of sentences in two languages, and it has none.")
            )
        if noise is None and precision_at:
            problems.append(Problem(f"task.{name}.precision_at", "has no effect without noise: nobody knows which pairs are good."))
        if problems:
            raise UserError(problems)
        self.corpus = corpus
        self.noise = noise
        self.score = score
        self.num_neighbors = num_neighbors
        self.filters = {rule_name: rule for rule_name, rule in filters.items() if rule is not None}
        self.num_kept = num_kept
        self.precision_at = precision_at
        self.embedding: Embedding = Embedding(
            layer=layer, pooling=pooling, normalize=True, max_length=max_length, prompts={None: prefix}
        )
        self.batch_tokens = batch_tokens

    def check_data(self) -> None:
        self._pairs()

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        encoder = model.encoder if isinstance(model, Objective) else model
        embedding = self.embedding.resolved(encoder, task=self.name)
        pairs = self._pairs()
        curated = self.choose(pairs, self._scores(encoder, embedding, pairs))
        if self.folder is not None:
            self.write(curated, self.folder / "data")
        return self.judge(curated, {} if self.score == "random" else embedding.told())

    def choose(self, pairs: Sequence[Pair], scores: Floats) -> Curated:
        """Keep the best pairs that pass the filters.

        Args:
            pairs: all of them.
            scores: (N,) theirs.
        """
        ranked = np.argsort(-scores, kind="stable")
        kept, dropped = ranked, {}
        for name, rule in self.filters.items():
            passed = np.array(rule.passes([(pairs[i].source, pairs[i].target) for i in kept.tolist()]), bool)
            dropped[name] = int((~passed).sum())
            kept = kept[passed]
            if dropped[name]:
                log.warning("%s: filter %s drops %d of %d pairs", self.name, name, dropped[name], len(passed))
        if not len(kept):
            raise user_error(f"task.{self.name}.filters", f"drop all of the {len(pairs)} pairs: {dropped}.")
        if self.num_kept is not None and len(kept) < self.num_kept:
            log.warning("%s: only %d pairs are left to keep, not num_kept=%d", self.name, len(kept), self.num_kept)
        return Curated(pairs=pairs, scores=scores, ranked=ranked, kept=kept[: self.num_kept], dropped=dropped)

    def judge(self, curated: Curated, settings: Mapping[str, str | float]) -> Evaluation:
        """Compare scores and choice with the noise that was put in, if any was.

        Args:
            curated: the corpus.
            settings: what the scores of pairs depend on, to stand with the scores of this task.
        """
        is_kept = np.zeros(len(curated.pairs), bool)
        is_kept[curated.kept] = True
        records: list[dict[str, Any]] = [
            {"id": str(i), "split": SPLIT, "where": pair.where, "score": score, "kept": kept}
            for i, (pair, score, kept) in enumerate(zip(curated.pairs, curated.scores.tolist(), is_kept.tolist(), strict=True))
        ]
        if self.noise is None:
            return Evaluation(scores=[], predictions=records)
        good = np.array([pair.noise is None for pair in curated.pairs])
        for record, pair, ratios in zip(records, curated.pairs, self._ratios(curated.ranked, is_kept, good), strict=True):
            record |= {"noise": pair.noise, "ratios": ratios, "texts": [pair.source, pair.target]}
        # Of pairs chosen at random as many are good as of all, and of the good ones as many are kept as of all.
        share, kept_share = float(good.mean()), float(is_kept.mean())
        scores = _aucs(self.name, curated)
        for score in ratio_scores(records, task=self.name):
            scores.append(replace(score, trivial=kept_share if score.metric.endswith("recall") else share))
        return Evaluation(scores=[replace(score, settings=settings) for score in scores], predictions=records)

    def write(self, curated: Curated, folder: Path) -> None:
        """Write the pairs that are kept, and how many were not.

        ``kept.tsv`` holds them best first, with the languages' codes as names of the columns and the score beside them;
        ``counts.json`` how many pairs there were, how many each filter dropped, and how many are kept.
        """
        folder.mkdir(exist_ok=True)
        log.warning("%s: keeps %d of %d pairs: %s", self.name, len(curated.kept), len(curated.pairs), folder / KEPT)
        counts = {"pairs": len(curated.pairs), "dropped": dict(curated.dropped), "kept": len(curated.kept)}
        write_atomically(folder / COUNTS, json.dumps(counts, indent=1, ensure_ascii=False) + "\n")
        lines = ["\t".join([*self.corpus.languages, "score"])]
        for i in curated.kept.tolist():
            texts = (" ".join(text.split()) for text in (curated.pairs[i].source, curated.pairs[i].target))
            lines.append("\t".join([*texts, f"{curated.scores[i]:.6g}"]))
        write_atomically(folder / KEPT, "\n".join(lines) + "\n")

    def _pairs(self) -> list[Pair]:
        pairs = []
        for example in self.corpus.examples():
            source, target = example.segments
            pairs.append(Pair(example.where, source.text, target.text))
        for reason, number in self.corpus.skipped.items():
            log.warning("%s: %d pairs skipped: %s", self.name, number, reason)
        if not pairs:
            raise user_error(f"task.{self.name}.corpus", "holds no pair.")
        if (most := max(self.precision_at, default=0)) > len(pairs):
            raise user_error(f"task.{self.name}.precision_at", f"{most} is more than the {len(pairs)} pairs there are.")
        return pairs if self.noise is None else self.noise.spoil(pairs)

    def _scores(self, encoder: Encoder, embedding: ResolvedEmbedding, pairs: Sequence[Pair]) -> Floats:
        # (N,)
        if self.score == "random":
            keys = fold(np.full(len(pairs), stream("curation random"), np.int64), np.arange(len(pairs), dtype=np.int64))
            return uniform(keys).astype(np.float32)

        def vectors(texts: Sequence[str], what: str) -> tuple[Floats, NDArray[np.int64]]:
            # As in LASER, a sentence that the corpus repeats is one neighbour: a vector per text, and which one each pair has.
            index: dict[str, int] = {}
            places = np.array([index.setdefault(text, len(index)) for text in texts], np.int64)
            return embedding.vectors(encoder, list(index), task=self.name, what=what, batch_tokens=self.batch_tokens), places

        source_SD, source_N = vectors([pair.source for pair in pairs], "source sentences")
        target_RD, target_N = vectors([pair.target for pair in pairs], "target sentences")
        return pair_scores(
            source_SD,
            target_RD,
            np.stack([source_N, target_N], axis=1),
            margin="absolute" if self.score == "cosine" else self.score,
            num_neighbors=self.num_neighbors,
            device=encoder.base.device,
        )

    def _ratios(self, ranked: NDArray[np.int64], is_kept: NDArray[np.bool_], good: NDArray[np.bool_]) -> list[dict[str, list[int]]]:
        rank = np.empty_like(ranked)
        rank[ranked] = np.arange(len(ranked))
        return [
            {
                **{f"precision_at_{k}": [int(right and place < k), int(place < k)] for k in self.precision_at},
                "kept_precision": [int(right and kept), int(kept)],
                "kept_recall": [int(right and kept), int(right)],
            }
            for place, kept, right in zip(rank.tolist(), is_kept.tolist(), good.tolist(), strict=True)
        ]


def _aucs(task: str, curated: Curated) -> list[Score]:
    # Of all bad pairs against the good ones, and of each kind of them.
    noise = np.array([pair.noise or "" for pair in curated.pairs])
    kinds = {"auc": noise != "", **{f"auc_{kind}": noise == kind for kind in sorted(set(noise.tolist()) - {""})}}
    scores = []
    for metric, bad in kinds.items():
        compared = bad | (noise == "")
        if not bad.any() or bad[compared].all():
            continue  # there is nothing to tell apart
        scores.append(
            Score(
                task=task,
                split=SPLIT,
                metric=metric,
                value=float(roc_auc_score(~bad[compared], curated.scores[compared])),
                num_examples=int(compared.sum()),
                higher_is_better=True,
                trivial=0.5,
            )
        )
    return scores
