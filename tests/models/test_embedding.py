from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mlmx.models.embedding import add_gradients_by_row

IDS = torch.tensor([[3, 1, 3, 0], [2, 3, 0, 1]])


class Tied(nn.Module):
    def __init__(self, *, padding_idx=None, head=True):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(6, 4, padding_idx=padding_idx, dtype=torch.float64)
        self.head = head

    def forward(self, ids):
        hidden = self.embedding(ids).tanh()
        return (hidden @ self.embedding.weight.T).logsumexp(-1).sum() if self.head else hidden.square().sum()


def gradient_of(model, backward):
    backward(model)
    return model.embedding.weight.grad


@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(
    "backward",
    [
        lambda model: model(IDS).backward(),
        lambda model: [model(ids).backward() for ids in IDS],  # two micro-batches
        lambda model: (model(IDS) + 2 * model(IDS[:1])).backward(),  # two lookups in one pass
    ],
    ids=["one", "accumulated", "twice"],
)
def test_the_gradient_is_that_of_autograd(backward, head, padding_idx):
    plain = Tied(padding_idx=padding_idx, head=head)
    ours = copy.deepcopy(plain)
    assert add_gradients_by_row(ours.embedding)
    expected = gradient_of(plain, backward)
    torch.testing.assert_close(gradient_of(ours, backward), expected, rtol=1e-12, atol=1e-14)
    assert expected.abs().sum() > 0


def accumulated(model):
    model(IDS).backward()
    return model.embedding.weight.grad


def asked_for(model):
    gradient = torch.autograd.grad(model(IDS), model.embedding.weight)[0]
    assert model.embedding.weight.grad is None
    return gradient


def asked_for_beside_another(model):
    model(IDS).backward(inputs=[model.embedding.weight])
    return model.embedding.weight.grad


def of_its_own_norm(model):
    gradient = torch.autograd.grad(model(IDS), model.embedding.weight, create_graph=True)[0]
    gradient.square().sum().backward()
    return model.embedding.weight.grad


def hooked(model):
    model.embedding.weight.register_hook(lambda gradient: gradient.square())
    return accumulated(model)


def hooked_afterwards(model):
    seen = []
    model.embedding.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.clone()))
    accumulated(model)
    return seen[-1]


def copied(model):
    return accumulated(copy.deepcopy(model))


def recomputed(model):
    checkpoint(model, IDS, use_reentrant=False).backward()
    return model.embedding.weight.grad


def in_two_passes_over_one_graph(model):
    loss = model(IDS)
    loss.backward(retain_graph=True)
    loss.backward()
    return model.embedding.weight.grad


def read_between(model):
    before = accumulated(model).clone()
    model.zero_grad()
    return before + 3 * accumulated(model)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(
    "gradient",
    [
        asked_for,
        asked_for_beside_another,
        of_its_own_norm,
        hooked,
        hooked_afterwards,
        copied,
        recomputed,
        in_two_passes_over_one_graph,
        read_between,
    ],
)
def test_whoever_asks_for_the_gradient_is_given_all_of_it(gradient, head):
    plain = Tied(head=head)
    ours = copy.deepcopy(plain)
    assert add_gradients_by_row(ours.embedding)
    expected = gradient(plain)
    torch.testing.assert_close(gradient(ours), expected, rtol=1e-12, atol=1e-14)
    assert expected.abs().sum() > 0


def test_what_is_frozen_has_no_gradient():
    model = Tied()
    assert add_gradients_by_row(model.embedding)
    model.embedding.weight.requires_grad_(False)
    assert not model.embedding(IDS).requires_grad


def test_no_gradient_is_kept_of_what_went_wrong():
    model = Tied()
    assert add_gradients_by_row(model.embedding)
    hidden = model.embedding(IDS)

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return weight.sum()

        @staticmethod
        def backward(ctx, gradient):
            raise MemoryError

    with pytest.raises(MemoryError):
        (hidden.sum() + Fails.apply(torch.ones((), dtype=torch.float64, requires_grad=True))).backward()
    model.zero_grad()
    model(IDS).backward()
    plain = Tied()
    plain(IDS).backward()
    torch.testing.assert_close(model.embedding.weight.grad, plain.embedding.weight.grad, rtol=1e-12, atol=1e-14)


def test_what_is_more_than_a_lookup_stays_as_it_is():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 2.0 * super().forward(ids)

    scaled = Scaled(6, 4)
    for embedding in (scaled, nn.Embedding(6, 4, max_norm=1.0), nn.Embedding(6, 4, scale_grad_by_freq=True), nn.Linear(4, 6)):
        assert not add_gradients_by_row(embedding)
    torch.testing.assert_close(scaled(IDS), 2.0 * scaled.weight[IDS])
