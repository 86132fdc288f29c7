"""What a model does with its rows, found out by trying: no config says it, and what Transformers is told it may ignore."""

# S rows

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlmx.data.batch import Batch
from mlmx.models import attention
from mlmx.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from mlmx.models.encoder import Encoder

# Between padded and packed float32 outputs: rounding is below 1e-5, and rows that see each other differ by more than 1e-3 even at
# initialisation.
_TOLERANCE = 1e-4


@torch.no_grad()
def try_packing(encoder: Encoder) -> str:
    """Set ``encoder.packed``: whether packed rows give what padded ones do. Return why not, an empty text if they do."""
    batch = _batch(encoder, _several_lengths(encoder))
    problem = ""
    with _evaluating(encoder):
        try:
            encoder.packed = False
            padded = encoder(batch)
            with quiet_transformers():
                encoder.base.set_attn_implementation(attention.PACKED)
            encoder.packed = True
            difference = float((padded - encoder(batch)).abs().max() / padded.abs().max().clamp(min=1))
            if not difference <= _TOLERANCE:
                problem = f"its attention lets packed rows see each other (outputs differ by {difference:.1g})."
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as failure:
            problem = f"it cannot be called on packed rows ({type(failure).__name__}: {failure})."
    if problem:
        encoder.packed = False
        encoder.base.set_attn_implementation(encoder.padded_attention)
    return problem


@torch.no_grad()
def own_direction(encoder: Encoder) -> attention.Direction:
    """Return which way tokens see in plain Transformers, with the model's config as it is."""
    packed, implementation = encoder.packed, encoder.base.config._attn_implementation
    encoder.packed = False
    with quiet_transformers():
        encoder.base.set_attn_implementation(encoder.padded_attention)
    seen = dependencies(encoder)
    with quiet_transformers():
        encoder.base.set_attn_implementation(implementation)
    encoder.packed = packed
    return "bidirectional" if bool(seen.triu(1).any()) else "causal"


@torch.no_grad()
def dependencies(encoder: Encoder, **attention_settings: Any) -> Tensor:
    """Return (3, 3) bool: whether the vector of a row's token (first index) changes with each of its tokens (second).

    Args:
        encoder: the encoder.
        **attention_settings: how it is called, see ``Encoder.forward``; ``keys`` are those of the row.
    """
    lengths = [3, 5]  # The longer row lets a padded model pad.
    if (keys := attention_settings.get("keys")) is not None:
        attention_settings["keys"] = torch.cat([keys, keys.new_ones(lengths[1])])
    batch = _batch(encoder, lengths)
    ordinary = encoder.vocabulary.ordinary_ids
    one, other = int(ordinary[0]), int(ordinary[-1])

    def vectors(changed: int | None) -> Tensor:
        ids = torch.full_like(batch.tensors["input_ids"], one)
        if changed is not None:
            ids[changed] = other
        batch.tensors["input_ids"].copy_(ids)
        return encoder(batch, **attention_settings)[:3]  # type: ignore[no-any-return]

    with _evaluating(encoder):
        before = vectors(None)
        return torch.stack([(vectors(changed) != before).any(dim=1) for changed in range(3)], dim=1)


def obeys(encoder: Encoder, direction: attention.Direction, *, keys: bool) -> bool:
    """Tell whether calls with a direction, and with some tokens as keys only if ``keys``, do what they say."""
    expected = torch.ones(3, 3, dtype=torch.bool)
    if direction == "causal":
        expected = expected.tril()
    settings: dict[str, Any] = {"direction": direction}
    if keys:
        first = torch.tensor([True, False, False])
        settings["keys"] = first.to(encoder.base.device)
        # What a hidden token is itself, its own vector knows without attention.
        expected = expected & first | torch.eye(3, dtype=torch.bool)
    try:
        return torch.equal(dependencies(encoder, **settings).cpu(), expected)
    except (RuntimeError, ValueError):  # Some models take masks of one shape only.
        return False


@torch.no_grad()
def knows_order(encoder: Encoder) -> bool:
    """Tell whether a token's vector depends on where tokens stand even if all are said to stand at one position, and see all."""
    length = _several_lengths(encoder)[1]
    batch = _batch(encoder, [length])
    batch.tensors["position_ids"].zero_()
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0)).to(batch.tensors["input_ids"].device)
    with _evaluating(encoder):
        vectors = encoder(batch, direction="bidirectional")
        batch.tensors["input_ids"].copy_(batch.tensors["input_ids"][order])
        difference = (encoder(batch, direction="bidirectional") - vectors[order]).abs().max() / vectors.abs().max().clamp(min=1)
    return not float(difference) <= _TOLERANCE


@torch.no_grad()
def ends_with_layer(encoder: Encoder) -> bool:
    """Tell whether a model's vectors are what its last layer hands on: then those of any layer are a shorter model's.

    In a model whose norms stand before the sublayers, one more norm follows the last layer.
    """
    if encoder.layers is None:
        return False
    handed_on: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        handed_on.append(output if isinstance(output, Tensor) else output[0])

    hook = encoder.layers[-1].register_forward_hook(keep)
    try:
        with _evaluating(encoder):
            vectors = encoder(_batch(encoder, [7]))
    finally:
        hook.remove()
    return torch.equal(handed_on[0].view_as(vectors), vectors)


@contextmanager
def _evaluating(encoder: Encoder) -> Iterator[None]:
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)


def _several_lengths(encoder: Encoder) -> list[int]:
    # One beyond the reach of a local window on both sides, so that windows are tried too.
    window = getattr(encoder.base.config, "sliding_window", None) or 0
    longest = min(encoder.max_length, max(24, 2 * window + 8))
    return [min(length, longest) for length in (7, longest, 3, 7, 12)]


def _batch(encoder: Encoder, lengths: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        tensors={
            "input_ids": torch.randint(encoder.vocabulary.size, (sum(lengths),), generator=generator),
            "position_ids": torch.cat([torch.arange(length) for length in lengths]),
            "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int(),
        },
        counts={},
        keys=torch.zeros(len(lengths), dtype=torch.int64),
        max_seqlen=max(lengths),
    )
    return batch.to(encoder.base.device)
