"""Masked language modelling of n-grams: each as one thing, token by token, and made up by a small model."""

# S rows, T tokens of all rows, P masked units, Q tokens of masked n-grams, D width, E width of an embedding

from __future__ import annotations

from typing import Annotated, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from mlmx.build import NonNegativeFloat, Ratio
from mlmx.data.batch import Batch
from mlmx.data.ngram_lexicon import NgramLexicon
from mlmx.data.rows import CorpusInfo
from mlmx.errors import user_error
from mlmx.masking.ngrams import NgramTable
from mlmx.models.cross_entropy import cross_entropy, cross_entropy_and_samples
from mlmx.models.detection import DetectionHead, detection_loss, detection_metrics
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops, num_linear_weights
from mlmx.models.generator import small_generator
from mlmx.models.identities import IdentityHead
from mlmx.objectives.masked import ratio_metric
from mlmx.objectives.ngram_rows import NgramCollator
from mlmx.objectives.objective import Objective, Output
from mlmx.schedules import ScheduledRatio

_CAPTION = (
    "Marked are the tokens to predict, in what the {reader} reads. A mask in the text may stand for an n-gram, which is shown by "
    "its first token and predicted as one; the tokens of these n-grams follow on a line of their own, each predicted once more."
)
_MADE_UP = (
    " In the places of the masks in the text, or of a part of them (made_up_ratio), the encoder reads what the generator makes up, "
    "and tells for every token there whether it is the original."
)


class ErnieGram(Objective):
    """Predicts masked n-grams, each as one entry of a lexicon and once more token by token (ERNIE-Gram).

    Rows are cut into the fewest units, tokens or n-grams of a lexicon that a stage of its own collects. A masked unit is one mask
    token, however long it is, so that rows become shorter. Slots at the end of the row stand for the tokens of masked n-grams:
    they see the row and themselves, and nothing sees them. With a generator, masks are filled with what a small model makes up,
    n-grams included, and the encoder also tells for every token whether it is an original. Metrics: ``explicit_accuracy``,
    ``comprehensive_accuracy``, ``ngram_ratio`` (part of the masked units that are n-grams), and with a generator
    ``generator_accuracy`` and those of ``mlmx.models.detection.detection_metrics``.

    Source:
        Xiao et al. 2021, ERNIE-Gram, arXiv:2010.12148, sections 3.2 to 3.5. Its pretraining code is not published.

    Terms:
        ``explicit``: sum over the masked units of -log p(y | row), y the token or the n-gram; the count is their number.
        ``comprehensive``: sum over the tokens x of masked n-grams of -log p(x | row), at their slots; the count is their number.
        With a generator ``generator``: as ``explicit``, of the generator, which reads the masks; and ``detection``: sum over all
        tokens but slots and remaining masks of the binary cross-entropy of "is not the original", the count is their number.
        All in nats.

    Shapes:
        see ``NgramCollator``; a row of the batch is the text with its masks, then the slots.

    Deviations:
        Left open by the paper, and settings here: the size of the generator, the weight of ``detection``, and which part of the
        masks is filled in. N-grams are runs of the tokenizer's tokens. All tokens have the positions that they have in the text,
        as the slots must; so the positions beside a mask tell how long it is. A slot is the mask token with an embedding of its
        place in the n-gram; single tokens have none. A token or n-gram has one embedding, for input and output, shared by generator
        and encoder. What is made up is a function of seed, epoch and row. Each term is divided by its own count.

    Raises:
        UserError: if the tokenizer has no mask token, the lexicon is empty, the model has local attention or ignores which tokens
            may be seen, or the generator would have no width.
    """

    forbidden: Tensor

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        mask_ratio: ScheduledRatio,
        ngrams: NgramLexicon,
        comprehensive_weight: NonNegativeFloat,
        generator_ratio: Annotated[float, Field(gt=0, le=1)] | None,
        made_up_ratio: Ratio,
        detection_weight: NonNegativeFloat,
    ) -> None:
        """Choose what is masked and how it is predicted.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            mask_ratio: part of a row's units that is masked, ``max(1, round(mask_ratio * units))`` of them, in [0, 1].
            ngrams: the lexicon.
            comprehensive_weight: weight of ``comprehensive``; those of ``explicit`` and ``generator`` are 1.
            generator_ratio: width of the generator's layers over the encoder's, in (0, 1]; null: there is none.
            made_up_ratio: part of the masks that the generator fills in, in [0, 1]; without a generator, nothing.
            detection_weight: weight of ``detection``.
        """
        super().__init__()
        mask_id = encoder.vocabulary.required_mask_id()
        if getattr(encoder.base.config, "sliding_window", None) is not None:
            raise user_error("model", "its local attention does not reach from the end of a row, where slots stand, to their text.")
        encoder.require(keys=True)
        encoder.add_head()
        self.encoder = encoder
        words = encoder.base.get_input_embeddings()
        self.num_words = words.num_embeddings
        entries = ordinary_entries(encoder, ngrams, corpus)
        deviation = encoder.initializer_range
        self.ngrams = nn.Embedding(len(entries), words.embedding_dim)
        self.slot_places = nn.Embedding(ngrams.longest, words.embedding_dim)
        for embedding in (self.ngrams, self.slot_places):
            nn.init.normal_(embedding.weight, std=deviation)
        self.identity_head = IdentityHead(encoder.hidden_size, words, self.ngrams, initializer_range=deviation)
        self.weights = {"explicit": 1.0, "comprehensive": comprehensive_weight}
        self.generator = None
        self.caption = _CAPTION.format(reader="encoder")
        if generator_ratio is not None:
            self.generator = small_generator(encoder, generator_ratio)
            self.generator.drop_head()
            width = self.generator.hidden_size
            self.generator_head = IdentityHead(width, words, self.ngrams, initializer_range=deviation)
            self.detection_head = DetectionHead(encoder.hidden_size, initializer_range=deviation)
            self.weights |= {"generator": 1.0, "detection": detection_weight}
            self.caption = _CAPTION.format(reader="generator") + _MADE_UP
        forbidden = np.ones(self.num_words + len(entries), bool)
        forbidden[encoder.vocabulary.ordinary_ids] = forbidden[self.num_words :] = False
        self.register_buffer("forbidden", torch.from_numpy(forbidden), persistent=False)
        self._collator = NgramCollator(
            table=NgramTable.of(entries, self.num_words),
            mask_ratio=mask_ratio,
            made_up_ratio=None if generator_ratio is None else made_up_ratio,
            mask_id=mask_id,
        )

    def collator(self) -> NgramCollator:
        return self._collator

    def forward(self, batch: Batch) -> Output:
        tensors = batch.tensors
        masked, identities, visible = tensors["masked"], tensors["identities"], tensors["visible"]
        made_up, filled_in = self._made_up(batch)
        hidden_TD = self.encoder(batch, keys=visible, selves=True, embeddings=self.embeddings(batch, filled_in))
        num_entries, num_masked = len(self.forbidden), identities.new_full((), len(identities))
        explicit, num_right = cross_entropy(self.identity_head, hidden_TD[masked], identities, vocab_size=num_entries)
        comprehensive, num_right_tokens = cross_entropy(
            cast(nn.Module, self.encoder.head),
            hidden_TD[tensors["slots"]],
            tensors["slot_targets"],
            vocab_size=self.encoder.vocabulary.size,
        )
        terms = {"explicit": explicit, "comprehensive": comprehensive}
        metrics = {
            "explicit_accuracy": (num_right, num_masked),
            "comprehensive_accuracy": (num_right_tokens, identities.new_full((), len(tensors["slots"]))),
            "ngram_ratio": ((identities >= self.num_words).sum(), num_masked),
            **ratio_metric(batch),
        }
        if filled_in is not None:
            replaced_T = torch.zeros_like(visible).index_copy(0, masked, filled_in != identities)[tensors["judged"]]
            logits = self.detection_head(hidden_TD[tensors["judged"]])
            terms["detection"] = detection_loss(logits, replaced_T)
            metrics |= detection_metrics(logits, replaced_T)
        return Output({**terms, **made_up.terms}, {**metrics, **made_up.metrics})

    def _made_up(self, batch: Batch) -> tuple[Output, Tensor | None]:
        # The generator's part of the output, and (P,) what it fills masks with, -1 where they stay; None without a generator.
        if self.generator is None:
            return Output({}), None
        tensors = batch.tensors
        hidden_TD = self.generator(batch, keys=tensors["visible"], selves=True)
        loss, num_right, drawn = cross_entropy_and_samples(
            self.generator_head,
            hidden_TD[tensors["masked"]],
            tensors["identities"],
            draws_P=tensors["draws"],
            forbidden_V=self.forbidden,
        )
        metrics = {"generator_accuracy": (num_right, drawn.new_full((), len(drawn)))}
        return Output({"generator": loss}, metrics), torch.where(tensors["made_up"], drawn, -1)

    def embeddings(self, batch: Batch, filled_in: Tensor | None) -> Tensor:
        """Return the embeddings that the encoder reads, (T, E).

        Args:
            batch: the batch.
            filled_in: (P,) the token or n-gram at each masked place, -1 where the mask stays; None: all of them stay.
        """
        tensors = batch.tensors
        words = self.encoder.base.get_input_embeddings()
        embeddings_TE: Tensor = words(tensors["input_ids"])
        embeddings_TE = embeddings_TE.index_add(0, tensors["slots"], self.slot_places(tensors["slot_places"]))
        if filled_in is None:
            return embeddings_TE
        is_ngram = filled_in >= self.num_words
        token = torch.where(is_ngram | (filled_in < 0), self._collator.mask_id, filled_in)
        ngram = torch.where(is_ngram, filled_in - self.num_words, 0)
        filled_PE = torch.where(is_ngram[:, None], self.ngrams(ngram), words(token))
        return embeddings_TE.index_copy(0, tensors["masked"], filled_PE)

    def flops(self, batch: Batch) -> int:
        models = [self.encoder]
        heads: dict[str, nn.Module | None] = {"explicit": self.identity_head, "comprehensive": self.encoder.head}
        if self.generator is not None:
            models.append(self.generator)
            heads |= {"generator": self.generator_head, "detection": self.detection_head}
        each = [model.flops(batch, keys=batch.tensors["visible"]) for model in models]
        if not all(each):
            return 0
        return sum(each) + sum(linear_flops(num_linear_weights(head), batch.counts[term]) for term, head in heads.items() if head)


def ordinary_entries(encoder: Encoder, ngrams: NgramLexicon, corpus: CorpusInfo) -> NDArray[np.int32]:
    """Return the n-grams of a corpus' lexicon, (K, L) filled up with -1, without those that hold a special token.

    Raises:
        UserError: if there is none.
    """
    entries = np.array(ngrams.of(corpus)["ngrams"], np.int32).reshape(-1, ngrams.longest)
    entries = entries[~np.isin(entries, encoder.vocabulary.special_ids).any(axis=1)]
    if not len(entries):
        raise user_error("objective.ngrams.num_kept", "leaves no n-gram: the corpus has none that is more than chance.")
    return entries
