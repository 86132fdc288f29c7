"""Running a model up to one of its layers, which is not run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class Reached(Exception):  # noqa: N818 - no error: what was asked for is there, and the rest need not run
    """Leaves a model in the middle, with the vectors that stand there.

    Attributes:
        states: what the layer was given.
    """

    def __init__(self, states: Tensor) -> None:
        """Take the vectors along."""
        super().__init__()
        self.states = states


@contextmanager
def leaving_at(layer: nn.Module) -> Iterator[None]:
    """Let a call of the model that the layer belongs to end in :class:`Reached` where the layer's turn comes."""

    def leave(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        raise Reached(args[0] if args else kwargs["hidden_states"])

    hook = layer.register_forward_pre_hook(leave, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
