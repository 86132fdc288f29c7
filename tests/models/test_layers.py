"""Layers that are compiled, and layers that are run again in the backward pass."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mlmx.errors import UserError
from mlmx.models import attention
from mlmx.models.encoder import Encoder
from tests.models.test_encoder import LENGTHS, batch_of, encoder

MULTIPLE = 128

# The compiler looks at gradients of inner tensors; it hides the warning from users, but not from a filter that makes it an error.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


def loss_and_gradients(model: Encoder, lengths: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    batch = batch_of(lengths)
    weights = torch.randn(batch.num_tokens, model.hidden_size, generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    torch.manual_seed(3)  # of dropout
    loss = (model(batch) * weights).sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "deberta-v2"])
def test_checkpointed_layers_change_nothing(family):
    dropout = {"attention_dropout": 0.1, "mlp_dropout": 0.1} if family == "modernbert" else {}
    plain, other = encoder(family, **dropout).train(), encoder(family, **dropout).train()
    calls: Counter[str] = Counter()
    other.layers[1].register_forward_hook(lambda *_: calls.update(["layer"]))
    inside = next(part for part in other.layers[1].modules() if isinstance(part, torch.nn.Linear))
    inside.register_forward_hook(lambda *_: calls.update(["inside"]))
    other.checkpoint_layers()
    loss, gradients = loss_and_gradients(plain, LENGTHS)
    loss_again, gradients_again = loss_and_gradients(other, LENGTHS)
    assert calls == {"layer": 1, "inside": 2}
    assert torch.equal(loss, loss_again)
    assert gradients.keys() == gradients_again.keys()
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    assert other.state_dict().keys() == plain.state_dict().keys()
    for one, again in zip(plain.eval().hidden_states(batch_of()), other.eval().hidden_states(batch_of()), strict=True):
        assert torch.equal(one, again)


class Counting:
    """A backend that compiles nothing and counts the graphs it is given."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph, _inputs):
        self.count += 1
        return graph


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("family", "checkpointed"), [("bert", False), pytest.param("modernbert", True, marks=pytest.mark.slow)])
def test_compiled_layers_change_nothing(family, checkpointed):
    plain, other = (encoder(family, num_hidden_layers=2).train() for _ in range(2))
    # Drawn for each token of a batch, and so for its filling too.
    plain.set_dropout(0.0)
    other.set_dropout(0.0)
    backend = Counting()
    other.compile_layers(token_multiple=MULTIPLE, backend=backend)
    if checkpointed:
        other.checkpoint_layers()
    counts = []
    for lengths in (LENGTHS, [40, 50], [7] * 18, [60, 60, 7]):  # 114, 90, 126 and 127 tokens, all filled up to 128
        loss, gradients = loss_and_gradients(plain, lengths)
        loss_again, gradients_again = loss_and_gradients(other, lengths)
        counts.append(backend.count)
        torch.testing.assert_close(loss, loss_again, rtol=1e-5, atol=1e-4)
        for name, gradient in gradients.items():
            assert (gradient - gradients_again[name]).norm() <= 1e-5 * (gradient.norm() + 1)
    assert counts[0] > 0
    assert counts[-1] == counts[0]
    assert other.state_dict().keys() == plain.state_dict().keys()
    for one, again in zip(plain.eval().hidden_states(batch_of()), other.eval().hidden_states(batch_of()), strict=True):
        torch.testing.assert_close(one, again, rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_layers_of_one_kind_share_their_code():
    counts = []
    for num_layers in (1, 3):
        torch.compiler.reset()
        model, backend = encoder("bert", num_hidden_layers=num_layers), Counting()
        model.compile_layers(token_multiple=MULTIPLE, backend=backend)
        model(batch_of())
        counts.append(backend.count)
    assert counts[0] == counts[1]


@torch.library.custom_op("mlmx_tests::varlen_attn", mutates_args=())
def _kernel(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int, scale: float) -> Tensor:
    assert max(cu_seqlens.diff()) <= longest
    bounds = cu_seqlens.tolist()
    rows = [slice(start, end) for start, end in pairwise(bounds)]
    attended = [
        ((query[row].transpose(0, 1) * scale) @ key[row].permute(1, 2, 0)).softmax(-1) @ value[row].transpose(0, 1) for row in rows
    ]
    return torch.cat(attended, dim=1).transpose(0, 1).contiguous()


@_kernel.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, longest: int, scale: float) -> Tensor:
    return torch.empty_like(query).contiguous()


@torch.no_grad()
def test_with_the_kernel_a_layer_is_one_graph(monkeypatch):
    # The kernel needs a GPU; what stands for it here is as opaque to the compiler, and as picky about the bound of the lengths.
    plain = encoder("bert")
    monkeypatch.setattr(attention, "uses_kernel", lambda *_: True)
    monkeypatch.setattr(
        attention,
        "varlen_attn",
        lambda q, k, v, starts, _starts, longest, _longest, *, scale, **_: _kernel(q, k, v, starts, longest, scale),
    )
    other, backend = encoder("bert"), Counting()
    other.compile_layers(token_multiple=MULTIPLE, backend=backend)
    counts = []
    for lengths in (LENGTHS, [20, 55, 3, 8, 20], [10, 40, 1, 1, 60, 2, 2]):
        torch.testing.assert_close(other(batch_of(lengths)), plain(batch_of(lengths)), rtol=1e-5, atol=2e-6)
        counts.append(backend.count)
    assert counts[0] == 1
    assert counts[-1] <= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
def test_inductor_changes_nothing():
    plain, other = encoder("bert").train(), encoder("bert").train()
    plain.set_dropout(0.0)
    other.set_dropout(0.0)
    other.compile_layers(token_multiple=MULTIPLE)
    for lengths in (LENGTHS, [40, 50]):
        loss, gradients = loss_and_gradients(plain, lengths)
        loss_again, gradients_again = loss_and_gradients(other, lengths)
        torch.testing.assert_close(loss, loss_again, rtol=1e-5, atol=1e-4)
        for name, gradient in gradients.items():
            assert (gradient - gradients_again[name]).norm() <= 1e-5 * (gradient.norm() + 1)


def test_what_runs_padded_is_not_compiled():
    with pytest.raises(UserError, match="padded rows"):
        encoder("mpnet").compile_layers(token_multiple=MULTIPLE)
