"""Cluster-based random token substitution: which tokens were replaced by ones that are hard to tell?"""

# T tokens of all rows, P selected tokens, K clusters, V vocabulary

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mlmx.build import NonNegativeFloat
from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.data.token_clusters import TokenClusters
from mlmx.data.vocabulary import Separator
from mlmx.keyed import uniform
from mlmx.masking.select import BernoulliTokens
from mlmx.masking.units import Draws
from mlmx.models.detection import DetectionHead, detection_loss, detection_metrics
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops, num_linear_weights
from mlmx.objectives.masked import ratio_metric, select
from mlmx.objectives.objective import Objective, Output
from mlmx.schedules import ScheduledRatio
from mlmx.training.parallel import current


@dataclass(frozen=True, kw_only=True)
class ClusterCollator(Collator):
    """Selects tokens; what they are replaced by is decided in the forward pass, by what the model confuses by then.

    Adds to the batch ``selected`` (P,) int64, the positions to replace, and ``draws`` (2, P) float64 in [0, 1), which decide on a
    cluster and on a token of it.

    Attributes:
        policy: selects the tokens.
        view: what a row is.
        separator: how the sides of a pair are joined.
    """

    policy: BernoulliTokens
    view: Literal["segment", "pair"] = "segment"
    separator: Separator = "template"

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        draws = Draws(context.keys)
        selection, scheduled = select(self.policy, rows, draws, context)
        drawn = [uniform(draws.of(stream, selection.row, selection.places)) for stream in ("sample", "random")]
        counts = {"detection": len(rows.input_ids)}
        return packed_batch(rows, context, counts=counts, selected=selection.positions, draws=np.stack(drawn), **scheduled)


class ClusterRandomTokenSubstitution(Objective):
    """Tells for every token whether it was replaced by a random one of a cluster that is easily confused with its own (C-RTS).

    Tokens are in clusters, and it is counted which cluster the model took for which: a replacement is drawn from the clusters that
    fooled it most often. Metrics are those of ``mlmx.models.detection.detection_metrics``, and ``cluster_entropy``, the mean
    entropy of the distributions that clusters are drawn from over that of the uniform one.

    Source:
        Di Liello et al. 2022, Effective Pretraining Objectives for Transformer-based Autoencoders, arXiv:2210.13536, section 3;
        Di Liello 2023, arXiv:2309.08272; lucadiliello/transformers-framework,
        ``pipelines/cluster_random_token_detection/base.py``.

    Terms:
        ``detection``: sum over all tokens of the binary cross-entropy of "was replaced", nats; the count is the number of tokens,
        special ones included, which never are. A token of cluster a is replaced by one of cluster b with probability
        softmax_b(beta * minmax_b(C[a, b])). C is 1 at first; after each step it is 1 more for each token of a that became one of b
        and was judged wrongly, and 1 less for each that was judged rightly.

    Shapes:
        ``selected`` (P,), ``draws`` (2, P): positions among the batch's packed tokens, and numbers in [0, 1) that decide what
        becomes of them.

    Deviations:
        The clusters of the paper stand in a file that is not published; here ``clusters`` makes them of the corpus. Pairs (a, b)
        that occur more than once count as often as they occur, over all micro-batches and processes (the released code counts them
        once). ``update: replaced`` counts tokens that were replaced; ``all``, as in the released code, also the others, as pairs
        (a, a): nearly all of these are judged rightly, which makes all other clusters equally likely. One logit and the sigmoid in
        place of two and the softmax, which is the same function. ``parity: released_code`` calls a token replaced for which itself
        was drawn; ``paper`` calls it an original. Tokens that do not occur in the corpus are never drawn.

    Raises:
        UserError: if the corpus has fewer tokens than clusters.
    """

    caption = (
        "Marked are the tokens that were replaced, as at the first step; one is kept where it was drawn itself. For every token, "
        "special ones too, the encoder tells whether it was replaced."
    )

    confusions: Tensor
    cluster: Tensor
    members: Tensor
    offsets: Tensor
    _new: Tensor

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        replace_ratio: ScheduledRatio,
        clusters: TokenClusters,
        beta: NonNegativeFloat,
        update: Literal["replaced", "all"],
        parity: Literal["paper", "released_code"],
    ) -> None:
        """Choose how many tokens are replaced, and by which.

        Args:
            encoder: what is trained; its language-model head is dropped.
            corpus: what it is trained on.
            replace_ratio: probability of each ordinary token to be replaced, in [0, 1].
            clusters: how tokens are put into clusters.
            beta: the cluster that fools the model most is exp(beta) times as likely as the one that does least; 0: all are equally
                likely.
            update: which tokens count in what the model confuses, see *Deviations*.
            parity: what a token is called for which itself was drawn, see *Deviations*.
        """
        super().__init__()
        encoder.drop_head()
        self.encoder = encoder
        self.weights = {"detection": 1.0}
        self.beta, self.update, self.parity = beta, update, parity
        self.head = DetectionHead(encoder.hidden_size, initializer_range=encoder.initializer_range)
        self._collator = ClusterCollator(policy=BernoulliTokens(replace_ratio))
        cluster = np.array(clusters.of(corpus)["cluster"], np.int64)
        ordinary = encoder.vocabulary.ordinary_ids
        ordinary = ordinary[cluster[ordinary] >= 0]
        members = ordinary[np.argsort(cluster[ordinary], kind="stable")]
        sizes = np.bincount(cluster[ordinary], minlength=clusters.num_clusters)
        fixed = {"cluster": cluster, "members": members, "offsets": np.concatenate([[0], np.cumsum(sizes)])}
        for name, values in fixed.items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)
        ones = np.ones((clusters.num_clusters, clusters.num_clusters), np.int64)
        self.register_buffer("confusions", torch.from_numpy(ones))
        self.register_buffer("_new", torch.zeros_like(self.confusions), persistent=False)

    def collator(self) -> ClusterCollator:
        return self._collator

    def forward(self, batch: Batch) -> Output:
        originals_T = batch.tensors["input_ids"]
        probabilities_KK = self.probabilities()
        given = self._with_replacements(batch, probabilities_KK)
        given_T = given.tensors["input_ids"]
        if self.parity == "paper":
            replaced_T = given_T != originals_T
        else:
            replaced_T = torch.zeros_like(originals_T, dtype=torch.bool).index_fill(0, batch.tensors["selected"], True)
        logits_T = self.head(self.encoder(given))
        if self.training and batch.counted:
            self._count(originals_T, given_T, replaced_T, logits_T.detach() > 0)
        metrics = {**detection_metrics(logits_T, replaced_T), "cluster_entropy": self._entropy(batch, probabilities_KK)}
        metrics |= ratio_metric(batch)
        return Output({"detection": detection_loss(logits_T, replaced_T)}, metrics)

    def shown(self, batch: Batch) -> Batch:
        return self._with_replacements(batch, self.probabilities())

    def probabilities(self) -> Tensor:
        """Return with which probability a token of each cluster is replaced by one of each other, (K, K) float64."""
        counts_KK, empty_K = self.confusions.double(), self.offsets.diff() == 0
        least = counts_KK.masked_fill(empty_K, torch.inf).amin(1, keepdim=True)
        most = counts_KK.masked_fill(empty_K, -torch.inf).amax(1, keepdim=True)
        scaled_KK = (counts_KK - least) / (most - least).clamp(min=1)
        return (self.beta * scaled_KK).masked_fill(empty_K, -torch.inf).softmax(1)

    def before_step(self) -> None:
        self._new.zero_()

    def after_step(self, step: int) -> None:
        self.confusions += current().sum(self._new)

    def flops(self, batch: Batch) -> int:
        encoder = self.encoder.flops(batch)
        return encoder + linear_flops(num_linear_weights(self.head), batch.num_tokens) if encoder else 0

    def _with_replacements(self, batch: Batch, probabilities_KK: Tensor) -> Batch:
        input_ids, selected = batch.tensors["input_ids"], batch.tensors["selected"]
        to_cluster_P, to_member_P = batch.tensors["draws"]
        summed_PK = probabilities_KK.cumsum(1)[self.cluster[input_ids[selected]]]
        # Far enough below 1 that no rounding reaches the end, where an empty cluster may stand.
        points_P1 = to_cluster_P.clamp(max=1 - 2**-40)[:, None] * summed_PK[:, -1:]
        cluster_P = torch.searchsorted(summed_PK, points_P1, right=True)[:, 0]
        begins_P, sizes_P = self.offsets[cluster_P], self.offsets.diff()[cluster_P]
        drawn_P = self.members[begins_P + (to_member_P * sizes_P).long()]
        return replace(batch, tensors={**batch.tensors, "input_ids": input_ids.index_copy(0, selected, drawn_P)})

    def _count(self, originals_T: Tensor, given_T: Tensor, replaced_T: Tensor, said_T: Tensor) -> None:
        from_T, to_T = self.cluster[originals_T], self.cluster[given_T]
        counted_T = from_T >= 0  # not special tokens
        if self.update == "replaced":
            counted_T &= replaced_T
        wrong_T = torch.where(said_T == replaced_T, -1, 1) * counted_T
        self._new.view(-1).index_add_(0, (from_T * len(self._new) + to_T) * counted_T, wrong_T)

    def _entropy(self, batch: Batch, probabilities_KK: Tensor) -> tuple[Tensor, Tensor]:
        # Of the selected tokens, the sum of what they are replaced by, and their number.
        entropy_K = torch.special.entr(probabilities_KK).sum(1) / (self.offsets.diff() > 0).sum().clamp(min=2).log()
        own_P = self.cluster[batch.tensors["input_ids"][batch.tensors["selected"]]]
        return entropy_K.clamp(max=1)[own_P].sum(), own_P.new_full((), len(own_P))
