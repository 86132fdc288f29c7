"""One process or several: who am I, on which device, and how do we agree.

Decisions that one rank could take alone (stop, skip, not a number) and all counts go through ``gather``, so that every rank sees
the same values and goes the same way. Gradients go through ``sum_gradients``.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Value = TypeVar("Value")

# Gradients travel in pieces of about this many numbers (100 MB of float32): large enough to fill the wire, small beside the model.
_BUCKET_NUMEL = 25_000_000


@dataclass(slots=True)
class ProcessGroup:
    """The processes that train together; one process is a group of its own.

    Attributes:
        device: where this process computes.
        rank: its number, from 0.
        size: how many there are.
        peak_flops: FLOPs per second that a device of the group can do at most; None if nobody said so.
        stop_requested: set by a signal handler; the trainer asks all ranks and stops them together.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    peak_flops: float | None = None
    stop_requested: bool = False
    _control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def request_stop(self) -> None:
        """Ask the trainer to write a checkpoint and stop; safe in a signal handler."""
        self.stop_requested = True

    def gather(self, value: Value) -> list[Value]:
        """Return every rank's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier(group=self._control)

    def broadcast_module(self, module: nn.Module) -> None:
        """Give every rank the main process' parameters and buffers."""
        if self.size > 1:
            for tensor in _distinct([*module.parameters(), *module.buffers()]):
                dist.broadcast(tensor.detach(), src=0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over ranks, in buckets whose layout depends on the parameters alone.

        A parameter that got a gradient on some ranks counts as zero on the others; one that got none anywhere keeps none.
        """
        if self.size == 1:
            return
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        present = torch.tensor([parameter.grad is not None for parameter in trainable], dtype=torch.uint8)
        dist.all_reduce(present, op=dist.ReduceOp.MAX, group=self._control)
        gradients = []
        for parameter, somewhere in zip(trainable, present.tolist(), strict=True):
            if somewhere:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, part in zip(bucket, torch.split(flat, [gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))


def _distinct(tensors: list[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    numel = 0
    for gradient in gradients:
        if bucket and (numel + gradient.numel() > _BUCKET_NUMEL or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, numel = [], 0
        bucket.append(gradient)
        numel += gradient.numel()
    if bucket:
        yield bucket


@contextmanager
def process_group(
    *,
    device: Literal["auto", "cpu", "cuda"],
    num_threads: int | None,
    timeout_seconds: float,
    peak_flops: float | None = None,
) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, or stand alone where it did not.

    Leave the block only after models and optimisers of the group are out of scope.

    Args:
        device: ``auto`` takes CUDA where there is a GPU.
        num_threads: CPU threads per process; None: what ``OMP_NUM_THREADS`` says, or the cores divided among the processes.
        timeout_seconds: how long a collective waits for the other ranks before it fails.
        peak_flops: FLOPs per second that one device can do at most, at the precision in use; None: not known.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    # Said explicitly, since torchrun sets 1 thread and a direct start all cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(num_threads or int(os.environ.get("OMP_NUM_THREADS", "0")) or max(1, cores // size))
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(chosen)
    if size == 1:
        yield ProcessGroup(device=chosen, peak_flops=peak_flops)
        return
    timeout = timedelta(seconds=timeout_seconds)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout, device_id=chosen if cuda else None)
    # What the ranks tell each other beside gradients are small Python values, which NCCL would have to copy to the GPU.
    control = dist.new_group(backend="gloo", timeout=timeout) if cuda else dist.group.WORLD
    group = ProcessGroup(device=chosen, rank=rank, size=size, peak_flops=peak_flops, _control=control)
    try:
        yield group
    except BaseException:
        # The other ranks may never reach a barrier; torchrun ends them.
        raise
    else:
        # In this order: without it gloo was seen hanging at interpreter exit, in 4 runs of 6.
        gc.collect()
        group.barrier()
        dist.destroy_process_group()
