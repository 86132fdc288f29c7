"""Masked token optimisation: a mask that is unlike any token."""

# S rows, T tokens of all rows, M most masks of a row, N most visible tokens of a row, D width

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mlmx.build import NonNegativeFloat, PositiveFloat, Unbuilt
from mlmx.data.batch import Batch, BatchContext
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.errors import user_error
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops
from mlmx.objectives.masked import MaskedCollator, MaskedObjective
from mlmx.objectives.objective import Objective, Output
from mlmx.objectives.wrapper import Wrapper, WrappingCollator, innermost

# Where a row has fewer masks or visible tokens than another.
_NONE = -1


@dataclass(frozen=True, kw_only=True)
class OptimisedCollator(WrappingCollator):
    """Another collator's batches, with the places of mask tokens and of those that can be seen.

    Adds ``mask_places`` (S, M) and ``visible_places`` (S, N) int64: the positions of each row's mask tokens, and of its ordinary
    tokens that are none; -1 where a row has fewer.

    Attributes:
        mask_id: the mask token.
        special_ids: all special tokens.
    """

    mask_id: int
    special_ids: tuple[int, ...]

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        batch = super().__call__(rows, context)
        input_ids, cu_seqlens = (batch.tensors[name].numpy() for name in ("input_ids", "cu_seqlens"))
        row = np.arange(batch.num_rows).repeat(np.diff(cu_seqlens))
        visible = by_row(np.flatnonzero(~np.isin(input_ids, self.special_ids)), row, batch.num_rows)
        masks = by_row(np.flatnonzero(input_ids == self.mask_id), row, batch.num_rows)
        # Among fewer than two tokens there is nothing to be even about.
        even = (visible != _NONE).sum(axis=1) > 1
        counts = {"singularity": int((visible != _NONE).sum()), "evenness": int((masks[even] != _NONE).sum())}
        tensors = {
            "visible_places": torch.from_numpy(visible),
            "mask_places": torch.from_numpy(np.where(even[:, None], masks, _NONE)),
        }
        return replace(batch, tensors={**batch.tensors, **tensors}, counts={**batch.counts, **counts})


class MaskedTokenOptimization(Wrapper):
    """Any masked language model, with a mask token that is kept unlike all others (MTO).

    Where it stands, the mask is to be as near to one visible token of its row as to another. Metrics are those of the other
    objective.

    Source:
        MTO, a method for masked image modelling. Its formulas were not read: what stands here follows secondary accounts of its
        ideas, carried over to text.

    Terms:
        those of the other objective, and

        ``singularity``: sum over the visible tokens i, those that are neither masked nor special, of cos^2(e_mask, e_i), of word
        embeddings; the count is their number. It is 0 for a mask that is orthogonal to them.

        ``evenness``: sum over the mask tokens m of rows with n > 1 visible tokens of 1 - H(p) / log n, with p the softmax over
        these tokens i of cos(x_m, x_i) / temperature, and x what the first layer gets; the count is the number of such masks. It is
        0 where a mask is equally near to all, and at most 1.

    Shapes:
        ``mask_places`` (S, M), ``visible_places`` (S, N): positions among the batch's packed tokens, -1 where a row has fewer.

    Deviations:
        All of it, see *Source*: both terms and their weights are ours. The recalibration of attention, by which visible tokens see
        fewer masks in low layers, is left out.

    Raises:
        UserError: if the other objective is no masked language model or never puts a mask token.
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        objective: Unbuilt[Objective],
        singularity_weight: NonNegativeFloat,
        evenness_weight: NonNegativeFloat,
        temperature: PositiveFloat,
    ) -> None:
        """Choose the other objective, and the weights of the terms.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            objective: a masked language model.
            singularity_weight: weight of ``singularity``.
            evenness_weight: weight of ``evenness``.
            temperature: of the softmax over cosines.
        """
        super().__init__(objective.build(encoder, corpus))
        collator = self.inner.collator()
        core = innermost(self.inner)
        if not isinstance(core, MaskedObjective) or not isinstance(collator, MaskedCollator):
            raise user_error("objective.objective", f"{type(core).__name__} is no masked language model.")
        if not collator.corruption.mask:
            raise user_error(
                "objective.objective.corruption.mask", "is 0, so that there is no mask token to be kept unlike others."
            )
        vocabulary = encoder.vocabulary
        self.temperature = temperature
        self.weights = {**self.inner.weights, "singularity": singularity_weight, "evenness": evenness_weight}
        self._collator = OptimisedCollator(
            collator=collator, mask_id=vocabulary.required_mask_id(), special_ids=vocabulary.special_ids
        )

    def collator(self) -> OptimisedCollator:
        return self._collator

    def weights_of(self, batch: Batch) -> dict[str, float]:
        return {**self.weights, **self.inner.weights_of(batch)}

    def forward(self, batch: Batch) -> Output:
        output: Output = self.inner(batch)
        terms = {"singularity": self.singularity(batch), "evenness": self.evenness(batch)}
        return replace(output, terms={**output.terms, **terms})

    def singularity(self, batch: Batch) -> Tensor:
        """Return the sum over visible tokens of the squared cosine between their embeddings and the mask's."""
        words = self.encoder.base.get_input_embeddings()
        visible = batch.tensors["visible_places"]
        ids = batch.tensors["input_ids"][visible.clamp(min=0)][visible != _NONE]
        mask_1D, visible_VD = (directions(words(given)) for given in (ids.new_full((1,), self._collator.mask_id), ids))
        return (visible_VD @ mask_1D[0]).square().sum()

    def evenness(self, batch: Batch) -> Tensor:
        """Return the sum over mask tokens of how far they are from being equally near to all visible tokens of their row."""
        states_TD = directions(self.encoder.states_at(batch, 0))
        masks_SM, visible_SN = batch.tensors["mask_places"], batch.tensors["visible_places"]
        cosines_SMN = states_TD[masks_SM.clamp(min=0)] @ states_TD[visible_SN.clamp(min=0)].transpose(1, 2)
        there_SN = visible_SN != _NONE
        logits_SMN = (cosines_SMN / self.temperature).masked_fill(~there_SN[:, None], torch.finfo(cosines_SMN.dtype).min)
        logs_SMN = logits_SMN.log_softmax(dim=-1)
        entropies_SM = -(logs_SMN.exp() * logs_SMN).masked_fill(~there_SN[:, None], 0.0).sum(dim=-1)
        most_S1 = there_SN.sum(dim=1, keepdim=True).clamp(min=2).to(entropies_SM.dtype).log()
        return (1.0 - entropies_SM / most_S1).masked_fill(masks_SM == _NONE, 0.0).sum()

    def flops(self, batch: Batch) -> int:
        inner = self.inner.flops(batch)
        masks, visible = batch.tensors["mask_places"], batch.tensors["visible_places"]
        pairs = ((masks != _NONE).sum(dim=1) * (visible != _NONE).sum(dim=1)).sum() + (visible != _NONE).sum()
        return inner + linear_flops(self.encoder.hidden_size, int(pairs)) if inner else 0


def directions(vectors: Tensor) -> Tensor:
    """Return vectors (..., D) of length 1, in float32 or better."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def by_row(positions: NDArray[np.int64], row: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """Return positions by row, (S, most of a row), -1 where there are fewer.

    Args:
        positions: rising.
        row: (T,) row of each token.
        num_rows: S.
    """
    of_row = np.bincount(row[positions], minlength=num_rows)
    table = np.full((num_rows, int(of_row.max(initial=0))), _NONE)
    table[np.arange(table.shape[1]) < of_row[:, None]] = positions
    return table
