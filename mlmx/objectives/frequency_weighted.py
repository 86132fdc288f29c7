"""Frequent tokens are selected less often."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mlmx.build import NonNegativeFloat, Unbuilt
from mlmx.data.batch import Collator
from mlmx.data.rows import CorpusInfo
from mlmx.data.token_counts import TokenCounts
from mlmx.errors import user_error
from mlmx.masking.select import FrequencyWeighted
from mlmx.models.encoder import Encoder
from mlmx.objectives.objective import Objective
from mlmx.objectives.wrapper import Wrapper, WrappingCollator


class FrequencyWeightedSelection(Wrapper):
    """Any masking objective, with tokens selected the more seldom the more frequent they are in the corpus.

    How many are selected, in what units, and everything else is as the other objective says; but where each token is selected by
    itself (``selection: bernoulli``) and the weights differ much, fewer are: no probability is above 1.

    Source:
        facebookresearch/XLM, ``xlm/trainer.py`` (``mask_out``) with ``sample_alpha``.

    Terms:
        those of the other objective.

    Shapes:
        those of the other objective.

    Deviations:
        XLM draws a number of tokens for a whole batch; here each row has its own, by the rule of the other objective: where each
        token is selected by itself, its probability is multiplied by its weight over the mean weight in its row, and is at most 1;
        where units are drawn one after the other, the next one is drawn by the mean weight of its tokens. Tokens are counted in the
        corpus that is trained on, each example of a mixture once.

    Raises:
        UserError: if the other objective selects tokens by no policy.
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        objective: Unbuilt[Objective],
        alpha: NonNegativeFloat,
        counts: TokenCounts,
    ) -> None:
        """Choose the other objective, and how much frequency counts.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            objective: a masking objective.
            alpha: a token that occurs c times has the weight ``max(c, 1) ** -alpha``; 0: all are equally likely.
            counts: how often each token occurs.
        """
        super().__init__(objective.build(encoder, corpus))
        occurrences = np.asarray(counts.of(corpus)["count"], np.float64)
        self._token_weights = np.maximum(occurrences, 1.0) ** -alpha
        if self._weighted(self.inner.collator()) is None:
            message = f"{type(self.inner).__name__} selects no tokens by a policy that weights could change."
            raise user_error("objective.objective", message)

    def collator(self) -> Collator:
        weighted = self._weighted(self.inner.collator())
        assert weighted is not None, "the constructor has asked"
        return weighted

    def _weighted(self, collator: Collator) -> Collator | None:
        # None where nothing is selected that weights could change.
        if isinstance(collator, WrappingCollator):
            inner = self._weighted(collator.collator)
            return None if inner is None else replace(collator, collator=inner)
        if (policy := getattr(collator, "policy", None)) is not None:
            return replace(collator, policy=FrequencyWeighted(policy, self._token_weights))  # type: ignore[type-var]
        if hasattr(collator, "token_weights"):
            return replace(collator, token_weights=self._token_weights)  # type: ignore[type-var]
        return None
