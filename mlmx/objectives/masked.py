"""What all masked-language-model objectives share: select, corrupt, predict what was there."""

# T tokens of all rows, P selected tokens, D width, V vocabulary

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.data.vocabulary import Separator
from mlmx.errors import user_error
from mlmx.masking.corrupt import Corruption, corrupt
from mlmx.masking.select import Policy, at_progress
from mlmx.masking.units import Draws, Selection, run_edges
from mlmx.models.cross_entropy import cross_entropy
from mlmx.models.encoder import Encoder
from mlmx.objectives.objective import Objective, Output
from mlmx.schedules import Schedule, ratio_at


@dataclass(frozen=True, kw_only=True)
class MaskedCollator(Collator):
    """Selects tokens by a policy and corrupts them.

    Adds to the batch ``selected`` (P,) int64, the positions to predict, and ``targets`` (P,) int64, the tokens that stood there;
    with a policy that knows types of words also ``in_entities`` (P,) bool, whether the token's word has one of them; with one
    that follows a schedule also ``mask_ratio`` (), where it stands.

    Attributes:
        policy: selects the tokens.
        corruption: what they are replaced by.
        mask_id: the mask token.
        ordinary_ids: what random tokens are drawn from.
        view: what a row is.
        separator: how the sides of a pair are joined.
        position_reset: whether positions start at 0 again with the second side of a pair.
    """

    policy: Policy
    corruption: Corruption
    mask_id: int
    ordinary_ids: NDArray[np.int64]
    view: Literal["segment", "pair"] = "segment"
    separator: Separator = "template"
    position_reset: bool = False

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        draws = Draws(context.keys)
        selection, scheduled = select(self.policy, rows, draws, context)
        input_ids = corrupt(
            rows.input_ids, selection, draws, corruption=self.corruption, mask_id=self.mask_id, ordinary_ids=self.ordinary_ids
        )
        counts, arrays = self.predictions(rows, selection, draws)
        return packed_batch(
            rows,
            context,
            counts=counts,
            input_ids=input_ids,
            position_ids=positions_of_sides(rows) if self.position_reset and self.view == "pair" else None,
            **arrays,
            **scheduled,
        )

    def predictions(
        self, rows: TokenRows, selection: Selection, draws: Draws
    ) -> tuple[dict[str, int], dict[str, NDArray[np.generic]]]:
        """Return how many predictions each term has, and what the batch holds for them; a method with more terms adds to both."""
        arrays: dict[str, NDArray[np.generic]] = {
            "selected": selection.positions,
            "targets": rows.input_ids[selection.positions],
        }
        if selection.typed is not None:
            arrays["in_entities"] = selection.typed
        return {"mlm": len(selection.positions)}, arrays


class MaskedObjective(Objective):
    """Cross-entropy of the selected tokens; what subclasses choose is the policy.

    Metrics are ``accuracy``, ``selected_ratio`` (of all tokens, special ones included), where words are annotated
    ``selected_in_entities`` (the part of the selected tokens whose word has one of the objective's types), and where it follows a
    schedule ``mask_ratio``.

    Attributes:
        weights: the one term, ``mlm``.
    """

    def __init__(self, encoder: Encoder, collator: MaskedCollator) -> None:
        """Keep the encoder, with its language-model head, and the collator."""
        super().__init__()
        encoder.add_head()
        self.encoder = encoder
        self.weights = {"mlm": 1.0}
        self._collator = collator

    def collator(self) -> MaskedCollator:
        return self._collator

    def forward(self, batch: Batch) -> Output:
        return self.predict(self.encoder(batch), batch)

    def predict(self, hidden_TD: Tensor, batch: Batch) -> Output:
        """Return the term ``mlm`` and its metrics, from the encoder's vectors."""
        assert self.encoder.head is not None
        selected, targets = batch.tensors["selected"], batch.tensors["targets"]
        # Only selected tokens reach the head: over a large vocabulary it costs more than the encoder.
        hidden = hidden_TD[selected]
        loss, num_right = cross_entropy(self.encoder.head, hidden, targets, vocab_size=self.encoder.vocabulary.size)
        # Filled on the device: copying a number there would wait for it.
        count = targets.new_full((), len(targets))
        metrics: dict[str, tuple[Tensor, Tensor]] = {
            "accuracy": (num_right, count),
            "selected_ratio": (count, targets.new_full((), batch.num_tokens)),
            **ratio_metric(batch),
        }
        if (in_entities := batch.tensors.get("in_entities")) is not None:
            metrics["selected_in_entities"] = (in_entities.sum(), count)
        return Output({"mlm": loss}, metrics)


def select(policy: Policy, rows: TokenRows, draws: Draws, context: BatchContext) -> tuple[Selection, dict[str, NDArray[Any]]]:
    """Return what a policy selects at a batch's progress and, where it follows a schedule, what the batch holds of that.

    Raises:
        UserError: if it follows a schedule, and the progress is not known.
    """
    return at_progress(policy, context.progress)(rows, draws), told_ratio(policy.ratio, context)


def told_ratio(ratio: float | Schedule, context: BatchContext) -> dict[str, NDArray[Any]]:
    """Return what a batch holds of its ratio: where that is a schedule, ``mask_ratio`` ().

    Raises:
        UserError: if it is one, and the progress is not known.
    """
    return {"mask_ratio": np.array(ratio_at(ratio, context.progress), np.float32)} if isinstance(ratio, Schedule) else {}


def ratio_metric(batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the metric ``mask_ratio`` of a batch whose policy follows a schedule."""
    ratio = batch.tensors.get("mask_ratio")
    return {} if ratio is None else {"mask_ratio": (ratio, torch.ones_like(ratio))}


def masked_collator(
    encoder: Encoder,
    policy: Policy,
    corruption: Corruption,
    *,
    view: Literal["segment", "pair"] = "segment",
    separator: Separator = "template",
    position_reset: bool = False,
) -> MaskedCollator:
    """Return the collator for an encoder's vocabulary.

    Raises:
        UserError: if something is to be masked and the tokenizer has no mask token.
    """
    vocabulary = encoder.vocabulary
    needed = vocabulary.required_mask_id() if corruption.mask else vocabulary.mask_id
    return MaskedCollator(
        policy=policy,
        corruption=corruption,
        mask_id=-1 if needed is None else needed,
        ordinary_ids=vocabulary.ordinary_ids,
        view=view,
        separator=separator,
        position_reset=position_reset,
    )


def require_pairs(corpus: CorpusInfo) -> None:
    """Refuse a corpus without pairs.

    Raises:
        UserError: if the corpus is monolingual.
    """
    if not corpus.parallel:
        message = (
            f"this objective reads pairs of sentences, and the corpus is not parallel: sentences of an example: {corpus.num_sides}."
        )
        raise user_error("corpus", message)


def resolve_view(view: Literal["segment", "pair", "corpus"], corpus: CorpusInfo) -> Literal["segment", "pair"]:
    """Return what a row is, where ``corpus`` stands for pairs if the corpus has them.

    Raises:
        UserError: if ``view`` is ``pair`` and the corpus is monolingual.
    """
    if view == "pair":
        require_pairs(corpus)
    if view == "corpus":
        return "pair" if corpus.parallel else "segment"
    return view


def positions_of_sides(rows: TokenRows) -> NDArray[np.int64]:
    """Return (T,) positions that start at 0 with each side of each row."""
    edges = run_edges(rows.segments, rows.cu_seqlens)
    starts = edges[:-1]
    return np.arange(edges[-1]) - starts.repeat(edges[1:] - starts)
