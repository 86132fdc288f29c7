"""A small translation model that is trained from scratch: what it reads, the objective, and its translations."""

# S pairs, T packed tokens, L the longest source, M the longest target, D width, V vocabulary

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertConfig, BertLMHeadModel, GenerationConfig
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import RowDataset, TokenRows
from mlmx.data.rows_from_text import IGNORED, TextRows
from mlmx.errors import user_error
from mlmx.keyed import fold
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops, num_linear_weights, pair_flops
from mlmx.objectives.objective import Objective, Output

TERM = "translation"


class PairRows(RowDataset):
    """Sentences and their translations: one example is two rows of tokens.

    ``take`` returns the sources of all examples, and then their targets.

    Attributes:
        num_truncated: pieces that did not fit.
    """

    def __init__(self, texts: TextRows) -> None:
        """Take down the pairs.

        Args:
            texts: the sources, and then as many targets.
        """
        self.texts = texts
        self.lengths = texts.lengths.reshape(2, -1).sum(axis=0).astype(np.int32)
        self.num_truncated = texts.num_truncated

    def take(self, indices: NDArray[np.int64]) -> TokenRows:
        indices = np.asarray(indices, np.int64)
        return self.texts.take(np.concatenate([indices, len(self) + indices]))


class PairCollator(Collator):
    """Packs the rows of pairs, and counts the tokens of the targets after the first, which opens them."""

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        num_pairs = len(context.keys)
        keys = fold(context.keys[None, :], np.arange(2)[:, None]).ravel()
        return packed_batch(rows, replace(context, keys=keys), counts={TERM: int(rows.lengths[num_pairs:].sum()) - num_pairs})


class Translator(Objective):
    """Trains an encoder and a decoder to translate.

    Source: the Transformer (Vaswani et al., arXiv 1706.03762) with one vocabulary, whose embeddings encoder, decoder and output
    share (section 3.4), and label smoothing (section 5.4).

    Terms: ``translation``, the summed cross-entropy of the targets' tokens, the closing one included, each given those before it,
    in nats; counts these tokens.

    Shapes: rows are packed, those of the S sources before those of the S targets.

    Deviations: layers, learned positions and the head are those of BERT in Transformers.

    Args:
        encoder: a fresh one, of BERT's architecture; its language-model head is dropped. The decoder gets its sizes.
        label_smoothing: part of the probability that is spread evenly over the vocabulary.
        num_beams: of the search for a translation; 1 is greedy.

    Raises:
        UserError: if the tokenizer puts no token before and after a text, for a translation to begin and end with.
    """

    def __init__(self, encoder: Encoder, *, label_smoothing: float, num_beams: int) -> None:
        super().__init__()
        layout = encoder.vocabulary.single
        if not (layout.prefix and layout.suffix):
            raise user_error(
                "model", "the tokenizer puts no special tokens around a text, with which a translation begins and ends."
            )
        encoder.drop_head()
        self.encoder = encoder
        self.weights = {TERM: 1.0}
        self.label_smoothing = label_smoothing
        decoder = {**encoder.base.config.to_dict(), "is_decoder": True, "add_cross_attention": True, "tie_word_embeddings": True}
        self.decoder = BertLMHeadModel(BertConfig(**decoder))
        self.decoder.set_input_embeddings(encoder.base.get_input_embeddings())
        self.decoder.tie_weights()
        self.generation = GenerationConfig(
            num_beams=num_beams,
            max_length=encoder.max_length,
            do_sample=False,
            bos_token_id=layout.prefix[0],
            eos_token_id=layout.suffix[-1],
            pad_token_id=encoder.vocabulary.pad_id,
        )

    def collator(self) -> Collator:
        return PairCollator()

    def forward(self, batch: Batch) -> Output:
        source, target_ids, lengths_S = _sides(batch)
        states_SLD, seen_SL = self._encoded(source)
        there_SM = torch.arange(int(lengths_S.max()), device=lengths_S.device) < lengths_S[:, None]
        ids_SM = torch.full(there_SM.shape, self.encoder.vocabulary.pad_id, device=target_ids.device)
        ids_SM = ids_SM.masked_scatter(there_SM, target_ids)
        logits_SMV = self.decoder(
            input_ids=ids_SM[:, :-1],
            attention_mask=there_SM[:, :-1].long(),
            encoder_hidden_states=states_SLD,
            encoder_attention_mask=seen_SL.long(),
            use_cache=False,
        ).logits
        labels_SM = ids_SM.masked_fill(~there_SM, IGNORED)[:, 1:]
        loss = F.cross_entropy(
            logits_SMV.float().transpose(1, 2),
            labels_SM,
            ignore_index=IGNORED,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        correct = (logits_SMV.argmax(dim=-1) == labels_SM).sum()
        return Output({TERM: loss}, {"accuracy": (correct, (labels_SM != IGNORED).sum())})

    def translate(self, source: Batch) -> Tensor:
        """Return the tokens of translations, (S, at most ``max_length``), special ones included.

        Args:
            source: packed rows of sources.
        """
        states_SLD, seen_SL = self._encoded(source)
        begin_S1 = torch.full((len(states_SLD), 1), self.generation.bos_token_id, device=states_SLD.device)
        config = self.decoder.config
        translations: Tensor = self.decoder.generate(
            begin_S1,
            generation_config=self.generation,
            attention_mask=torch.ones_like(begin_S1),
            encoder_hidden_states=states_SLD,
            encoder_attention_mask=seen_SL.long(),
            past_key_values=EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config)),
        )
        return translations

    def flops(self, batch: Batch) -> int:
        source, target_ids, lengths_S = _sides(batch)
        sources, targets = (lengths.numpy().astype(np.int64) for lengths in (source.tensors["cu_seqlens"].diff(), lengths_S - 1))
        width, num_layers = self.encoder.hidden_size, self.encoder.num_layers
        # Keys and values of the sources; all else of the decoder sees the targets, of which a token sees itself and those before.
        of_sources = num_layers * 2 * width**2
        pairs = (sources * targets).sum() + (targets * (targets + 1) // 2).sum()
        return (
            self.encoder.flops(source)
            + linear_flops(of_sources, source.num_tokens)
            + linear_flops(num_linear_weights(self.decoder) - of_sources, len(target_ids) - len(targets))
            + pair_flops(width, num_layers * int(pairs))
        )

    def _encoded(self, source: Batch) -> tuple[Tensor, Tensor]:
        # The sources' states, (S, L, D), and where they are, (S, L).
        lengths_S = source.tensors["cu_seqlens"].diff()
        seen_SL = torch.arange(int(lengths_S.max()), device=lengths_S.device) < lengths_S[:, None]
        states_TD = self.encoder(source)
        states_SLD = states_TD.new_zeros(*seen_SL.shape, states_TD.shape[1])
        return states_SLD.masked_scatter(seen_SL[..., None], states_TD), seen_SL


def _sides(batch: Batch) -> tuple[Batch, Tensor, Tensor]:
    # The sources as a batch, the tokens of the targets one after the other, and how many each target has.
    num_pairs = batch.num_rows // 2
    cu_seqlens = batch.tensors["cu_seqlens"]
    cut = int(cu_seqlens[num_pairs])
    tensors = {name: batch.tensors[name][:cut] for name in ("input_ids", "position_ids")}
    source = replace(batch, tensors={**tensors, "cu_seqlens": cu_seqlens[: num_pairs + 1]}, keys=batch.keys[:num_pairs])
    return source, batch.tensors["input_ids"][cut:], cu_seqlens[num_pairs:].diff()
