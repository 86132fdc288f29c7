"""Lexinvariant language modelling: what is left of a language when words are not known beforehand."""

# S rows, T tokens of all rows, P predictions, V vocabulary, D width

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mlmx.build import PositiveFloat
from mlmx.data.batch import Batch, Collator
from mlmx.data.rows import CorpusInfo
from mlmx.errors import user_error
from mlmx.models.drawn_embedding import drawn_cross_entropy, drawn_embeddings, exported_embeddings
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops
from mlmx.objectives.clm import CausalLanguageModeling, NextTokenCollator, next_token_output
from mlmx.objectives.objective import Objective, Output


class LexinvariantLanguageModeling(Objective):
    """Predicts each token from those before it, where the vectors of tokens are drawn anew for each row and stand for nothing else.

    What a token is has to be found out from where it occurs in the row, so the loss is the same for a text and for its cipher. The
    metric is ``accuracy``.

    Source:
        Huang et al. 2023, Lexinvariant Language Models, NeurIPS, arXiv:2305.16349, section 2. No released code was found.

    Terms:
        ``clm``: sum over all tokens i but the first of each row of -log p(x_i | those before it), nats, with p the softmax over the
        inner products of the encoder's vector with those that were drawn for the row; the count is their number.

    Shapes:
        As ``clm``; the tables (S, V, D) of all rows are drawn some rows at a time. Their draw costs time in proportion to V: meant
        for vocabularies of characters, and possible with large ones.

    Deviations:
        ``embedding_std`` is the square root of 1/D by default, with which inner products with normed vectors begin at a variance of
        1, but for the token just read: its vector is part of the encoder's, so that it begins as the likeliest, and the loss above
        log V, the more the wider the encoder. The paper's rows have 1. All tokens are drawn, special ones too; the paper's
        regularisation, which draws some, is left out. The exported encoder has one more draw for its word embeddings, which nothing
        has trained, so that it can be judged and fine-tuned like any other.

    Raises:
        UserError: if the encoder's word embeddings are not as wide as its layers, or it runs on padded rows and ignores causal
            attention.
    """

    caption = (
        f"{CausalLanguageModeling.caption} The encoder reads no word embeddings: each token has a vector that is drawn for it in "
        "each row anew."
    )

    def __init__(self, encoder: Encoder, corpus: CorpusInfo, *, embedding_std: PositiveFloat | None) -> None:
        """Replace the word embeddings.

        Args:
            encoder: what is trained; its language-model head is dropped, its word embeddings are drawn and never trained.
            corpus: what it is trained on.
            embedding_std: standard deviation of the drawn numbers; null: the square root of 1/D.
        """
        super().__init__()
        encoder.drop_head()
        encoder.require("causal")
        words = encoder.base.get_input_embeddings().weight
        if words.shape[1] != encoder.hidden_size:
            message = f"its word embeddings are {words.shape[1]} wide and its layers {encoder.hidden_size}; here both are one draw."
            raise user_error("model", message)
        self.encoder = encoder
        self.weights = {"clm": 1.0}
        self.std = embedding_std if embedding_std is not None else encoder.hidden_size**-0.5
        words.requires_grad_(False)
        words.copy_(exported_embeddings(words, self.std))
        self._collator = NextTokenCollator()

    def collator(self) -> Collator:
        return self._collator

    def forward(self, batch: Batch) -> Output:
        loss, num_right = drawn_predictions(self.encoder, batch, std=self.std, reduction="sum")
        return next_token_output(loss, num_right, batch.tensors["targets"])

    def flops(self, batch: Batch) -> int:
        encoder = self.encoder.flops(batch, direction="causal")
        vocabulary = linear_flops(self.encoder.vocabulary.size * self.encoder.hidden_size, batch.counts["clm"])
        # Drawn tables have no gradient, which is a third of what linear layers cost.
        return encoder + vocabulary * 2 // 3 if encoder else 0


def drawn_predictions(encoder: Encoder, batch: Batch, *, std: float, reduction: Literal["sum", "none"]) -> tuple[Tensor, Tensor]:
    """Return what it costs to predict next tokens from and by vectors drawn for each row, and how many predictions are right.

    Args:
        encoder: reads the vectors.
        batch: what ``NextTokenCollator`` makes.
        std: standard deviation of the drawn numbers.
        reduction: ``sum``: all losses together, (); ``none``: that of each prediction, (P,). In nats.
    """
    input_ids, selected, targets = (batch.tensors[name] for name in ("input_ids", "selected", "targets"))
    lengths_S = batch.tensors["cu_seqlens"].diff().long()
    keys_T = batch.keys.repeat_interleave(lengths_S, output_size=len(input_ids))
    embeddings_TD = drawn_embeddings(keys_T, input_ids, encoder.hidden_size, std, encoder.base.dtype)
    hidden_TD: Tensor = encoder(batch, direction="causal", embeddings=embeddings_TD)
    return drawn_cross_entropy(
        hidden_TD[selected - 1],
        targets,
        (lengths_S - 1).clamp(min=0),
        batch.keys,
        vocab_size=encoder.vocabulary.size,
        std=std,
        reduction=reduction,
    )
