"""The small masked language model beside an encoder that replaces tokens for it to find."""

from __future__ import annotations

from transformers import ElectraConfig, ElectraForMaskedLM

from mlmx.errors import user_error
from mlmx.models.encoder import Encoder
from mlmx.models.quiet import quiet_transformers

_HEAD_SIZE = 64


def small_generator(encoder: Encoder, size_ratio: float) -> Encoder:
    """Return a generator of an encoder's depth and a part of its width, which shares its word embeddings.

    It is an ELECTRA model whatever the encoder is: that family projects embeddings of one width to layers of another. Heads are 64
    wide (one, if the layers are narrower), feed-forward layers four times as wide as the layers. Random weights come from torch's
    global generator.

    Args:
        encoder: whose word embeddings are shared, the same tensor.
        size_ratio: the width of the layers over the encoder's, in (0, 1]; rounded to full heads.

    Raises:
        UserError: if no number is left of the width.
    """
    words = encoder.base.get_input_embeddings()
    vocab_size, embedding_size = words.weight.shape
    width = round(size_ratio * encoder.hidden_size)
    num_heads = max(1, round(width / _HEAD_SIZE))
    hidden_size = num_heads * _HEAD_SIZE if width >= _HEAD_SIZE else width
    if hidden_size < 1:
        raise user_error("objective.generator_ratio", f"{size_ratio:g} of a width of {encoder.hidden_size} leaves nothing.")
    config = ElectraConfig(
        vocab_size=vocab_size,
        embedding_size=embedding_size,
        hidden_size=hidden_size,
        num_hidden_layers=encoder.num_layers,
        num_attention_heads=num_heads,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=encoder.max_length,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=encoder.vocabulary.pad_id,
    )
    with quiet_transformers():
        model = ElectraForMaskedLM(config)
    model.to(words.weight.device, words.weight.dtype)
    model.set_input_embeddings(words)
    model.tie_weights()
    return Encoder(model, encoder.tokenizer)
