"""Weights that are divided among processes (FSDP2), and how they become whole again for a file."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, layers: Iterable[nn.Module], *, device: str, num_processes: int, num_shards: int) -> None:
    """Divide a module's parameters, gradients and optimiser state among processes, in place.

    The processes form a mesh of ``num_processes / num_shards`` copies of ``num_shards`` parts. Gradients are summed over all of
    them, never averaged.

    Args:
        module: the whole; what ``layers`` do not hold is gathered while it runs.
        layers: parts that are gathered one at a time.
        device: ``cpu`` or ``cuda``.
        num_processes: all that train together.
        num_shards: a divisor of ``num_processes``.
    """
    mesh = init_device_mesh(device, (num_processes // num_shards, num_shards), mesh_dim_names=("replicate", "shard"))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, detached; for a divided one every process calls this at the same time."""
    complete: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return complete.detach()


@torch.no_grad()
def assign(target: Tensor, source: Tensor) -> None:
    """Write a whole tensor into one that may be divided; every process takes its own part of it."""
    if isinstance(target, DTensor):
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(source)


def make_whole(module: nn.Module) -> None:
    """Replace divided parameters by whole ones, in place, at the end of a training; every process calls this at the same time."""
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                if parameter not in replaced:
                    replaced[parameter] = nn.Parameter(whole(parameter), requires_grad=parameter.requires_grad)
                setattr(part, name, replaced[parameter])
