"""The smaller models inside an encoder: its first layers."""

from __future__ import annotations

from mlmx.errors import user_error
from mlmx.models.encoder import Encoder
from mlmx.models.probe import ends_with_layer


def require_plain_layers(encoder: Encoder, *, where: str) -> None:
    """Refuse an encoder whose layers do not give what a shorter model of its own would give.

    Args:
        encoder: the encoder; one without weights is not tried.
        where: the setting that asks for layers, for the message.

    Raises:
        UserError: if it is one.
    """
    if encoder.base.device.type != "meta" and not ends_with_layer(encoder):
        message = (
            f"{encoder.base.config.model_type!r} has a norm after its last layer, or does not show its layers: what these hand on "
            "is not what a shorter model would give."
        )
        raise user_error(where, message)


def keep_layers(encoder: Encoder, num_layers: int, *, where: str) -> Encoder:
    """Return the encoder of the first layers alone, with the head of the whole one; the given one is used up.

    Its vectors are those that the given one has after these layers, and its folder is an ordinary one with fewer layers.

    Args:
        encoder: the encoder.
        num_layers: how many.
        where: the setting that says it, for messages.

    Raises:
        UserError: if it has fewer, or a shorter model would have other vectors.
    """
    if not 1 <= num_layers <= encoder.num_layers:
        raise user_error(where, f"{num_layers} is not among the layers 1 to {encoder.num_layers} of the encoder.")
    require_plain_layers(encoder, where=where)
    assert encoder.layers is not None, "layers that are plain are shown"
    del encoder.layers[num_layers:]
    encoder.base.config.num_hidden_layers = num_layers
    if encoder.head is not None:
        encoder.head.model.config.num_hidden_layers = num_layers
    encoder.num_layers = num_layers
    return encoder
