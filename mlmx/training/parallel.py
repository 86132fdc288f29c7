"""One process or several: who am I, on which device, and how do we agree.

Decisions that one rank could take alone (stop, skip, not a number) and all counts go through ``gather``, so that every rank sees
the same values and goes the same way. Gradients go through ``sum_gradients``.
"""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from mlmx.errors import user_error
from mlmx.training.shard import shard

# Gradients travel in pieces of about this many numbers (100 MB of float32): large enough to fill the wire, small beside the model.
_BUCKET_NUMEL = 25_000_000

# What ranks tell each other has room here as a rule, so that one exchange does.
_FIRST_BYTES = 2048


@dataclass(slots=True)
class ProcessGroup:
    """The processes that train together; one process is a group of its own.

    Attributes:
        device: where this process computes.
        rank: its number, from 0.
        size: how many there are.
        num_shards: how many processes share one copy of the weights; 1: each has its own.
        peak_flops: FLOPs per second that a device of the group can do at most; None if nobody said so.
        asynchronous: whether the device computes while this process goes on, as a GPU does.
        stop_requested: set by a signal handler; the trainer asks all ranks and stops them together.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    num_shards: int = 1
    peak_flops: float | None = None
    asynchronous: bool = False
    stop_requested: bool = False
    _control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def request_stop(self) -> None:
        """Ask the trainer to write a checkpoint and stop; safe in a signal handler."""
        self.stop_requested = True

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks; values are JSON, since nothing that is read is ever unpickled."""
        if self.size == 1:
            return [value]
        encoded = json.dumps(value).encode()
        message = torch.frombuffer(bytearray(len(encoded).to_bytes(8, "big") + encoded), dtype=torch.uint8)
        firsts = self._gather_bytes(message[:_FIRST_BYTES], _FIRST_BYTES)
        lengths = [int.from_bytes(first[:8], "big") for first in firsts]
        rest = max(lengths) + 8 - _FIRST_BYTES
        others = self._gather_bytes(message[_FIRST_BYTES:], rest) if rest > 0 else [b""] * self.size
        return [json.loads((a + b)[8 : 8 + length]) for a, b, length in zip(firsts, others, lengths, strict=True)]

    def gather_arrays(self, arrays: Sequence[NDArray[Any]]) -> list[list[NDArray[Any]]]:
        """Return every rank's arrays of numbers, in the order of ranks; ranks may have different numbers of them, of any shapes."""
        if self.size == 1:
            return [list(arrays)]
        described = self.gather([(array.dtype.str, array.shape) for array in arrays])
        data = torch.frombuffer(bytearray(b"".join(array.tobytes() for array in arrays)) or bytearray(1), dtype=torch.uint8)
        longest = max(sum(_num_bytes(*one) for one in own) for own in described)
        return [list(_arrays(own, data)) for own, data in zip(described, self._gather_bytes(data, max(longest, 1)), strict=True)]

    def _gather_bytes(self, data: Tensor, length: int) -> list[bytes]:
        padded = torch.zeros(length, dtype=torch.uint8)
        padded[: len(data)] = data
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded, group=self._control)
        return [tensor.numpy().tobytes() for tensor in gathered]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier(group=self._control)

    def broadcast_module(self, module: nn.Module) -> None:
        """Give every rank the main process' parameters and buffers."""
        if self.size > 1:
            for tensor in _distinct([*module.parameters(), *module.buffers()]):
                dist.broadcast(tensor.detach(), src=0)

    def place(self, module: nn.Module, layers: Iterable[nn.Module]) -> None:
        """Put a module on the device, with the same weights on every rank, divided among ``num_shards`` of them layer by layer."""
        module.to(self.device)
        self.broadcast_module(module)
        if self.num_shards > 1:
            shard(module, layers, device=self.device.type, num_processes=self.size, num_shards=self.num_shards)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the ranks' tensors, on the device."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over ranks, in buckets whose layout depends on the parameters alone.

        A parameter that got a gradient on some ranks counts as zero on the others; one that got none anywhere keeps none. Those
        of divided weights have been summed by the backward pass.
        """
        if self.size == 1 or self.num_shards > 1:
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


def current() -> ProcessGroup:
    """Return the processes that work together with this one: those of the ``process_group`` it is in, or itself alone."""
    return _current


# As torch's own default group, of which a process has one at a time.
_current = ProcessGroup()


@contextmanager
def _as_current(group: ProcessGroup) -> Iterator[ProcessGroup]:
    global _current
    before, _current = _current, group
    try:
        yield group
    finally:
        _current = before


def _num_bytes(dtype: str, shape: Sequence[int]) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _arrays(described: Iterable[tuple[str, Sequence[int]]], data: bytes) -> Iterator[NDArray[Any]]:
    start = 0
    for dtype, shape in described:
        yield np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        start += _num_bytes(dtype, shape)


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
    num_shards: int = 1,
    peak_flops: float | None = None,
) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, or stand alone where it did not.

    Leave the block only after models and optimisers of the group are out of scope.

    Args:
        device: ``auto`` takes CUDA where there is a GPU.
        num_threads: CPU threads per process; None: what ``OMP_NUM_THREADS`` says, or the cores divided among the processes.
        timeout_seconds: how long a collective waits for the other ranks before it fails.
        num_shards: how many processes share one copy of the weights.
        peak_flops: FLOPs per second that one device can do at most, at the precision in use; None: not known.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if size % num_shards:
        raise user_error("parallel.num_shards", f"{num_shards} does not divide the {size} processes.")
    # Said explicitly, since torchrun sets 1 thread and a direct start all cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(num_threads or int(os.environ.get("OMP_NUM_THREADS", "0")) or max(1, cores // size))
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(chosen)
    if size == 1:
        with _as_current(ProcessGroup(device=chosen, peak_flops=peak_flops, asynchronous=cuda)) as group:
            yield group
        return
    timeout = timedelta(seconds=timeout_seconds)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout, device_id=chosen if cuda else None)
    # What the ranks tell each other beside gradients are small Python values, which NCCL would have to copy to the GPU.
    control = dist.new_group(backend="gloo", timeout=timeout) if cuda else dist.group.WORLD
    group = ProcessGroup(
        device=chosen,
        rank=rank,
        size=size,
        num_shards=num_shards,
        peak_flops=peak_flops,
        asynchronous=cuda,
        _control=control,
    )
    try:
        with _as_current(group):
            yield group
    except BaseException:
        # The other ranks may never reach a barrier; torchrun ends them.
        raise
    else:
        # In this order: without it gloo was seen hanging at interpreter exit, in 4 runs of 6.
        gc.collect()
        group.barrier()
        dist.destroy_process_group()
