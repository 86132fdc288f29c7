"""Checkpoints: written whole or not at all, checked when read, never unpickled.

``checkpoints/step-00000012/`` holds ``model.safetensors``, ``optimizer.safetensors``, ``state.json`` and ``manifest.json``, which
has the SHA-256 of the others. It is written under another name, synced to disk and renamed. Tensors are whole, however many
processes they were divided among, so that any number of processes can go on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from mlmx.errors import user_error
from mlmx.training.shard import assign, whole

log = logging.getLogger(__name__)

_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a training is at one step, copied to the CPU, so that the training can go on while it is written.

    Attributes:
        model: name -> parameter or buffer.
        optimizer: ``<parameter>/<entry>`` -> state.
        state: scalars, ``step`` among them; JSON.
    """

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]

    @classmethod
    def of(cls, module: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], *, keep: bool = True) -> Snapshot | None:
        """Take a snapshot; where weights are divided, every process calls this at the same time.

        Args:
            module: its parameters and buffers.
            optimizer: over parameters of the module.
            state: scalars, ``step`` among them.
            keep: False for a process that only helps; it gets None.
        """
        model = _copies(module_tensors(module), keep=keep)
        entries = _copies(_optimizer_tensors(module, optimizer), keep=keep)
        return cls(model, entries, dict(state)) if keep else None


class CheckpointWriter:
    """Writes snapshots, one after the other, while the training goes on.

    Args:
        folder: where checkpoints lie.
        keep: how many stay; older ones are deleted.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[Path] | None = None

    def write(self, snapshot: Snapshot) -> None:
        """Begin to write a snapshot, after the one before it is written."""
        self.wait()
        self._written = self._thread.submit(write_checkpoint, self._folder, snapshot, keep=self._keep)

    def wait(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            UserError: if it could not be written.
        """
        if self._written is not None:
            written, self._written = self._written, None
            written.result()

    def check(self) -> None:
        """Raise what went wrong, if anything did by now; without waiting."""
        if self._written is not None and self._written.done():
            self.wait()


def write_checkpoint(folder: Path, snapshot: Snapshot, *, keep: int) -> Path:
    """Write a checkpoint and delete those older than the last ``keep``, but for the one of the state's ``best_step``.

    Args:
        folder: where checkpoints lie.
        snapshot: what to write.
        keep: how many to keep, this one included.

    Raises:
        UserError: if the disk does not take it; nothing half-written stays.
    """
    final = _path_of(folder, snapshot.state["step"])
    temporary = folder / f".{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover)
        temporary.mkdir()
        save_file(dict(snapshot.model), temporary / "model.safetensors")
        save_file(dict(snapshot.optimizer), temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps(snapshot.state), encoding="utf-8")
        manifest = {"format": 1, "sha256": {name: _sha256(temporary / name) for name in _FILES}}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        if final.exists():
            # One that was found damaged and passed over; its step has been reached again.
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        last = _checkpoints(folder)
        left = f"the last one is {last[-1].name}" if last else "there is none before it"
        raise user_error("outputs", f"the checkpoint {final} could not be written ({error}); {left}.") from error
    best = snapshot.state.get("best_step")
    for old in _checkpoints(folder)[:-keep]:
        if best is None or old != _path_of(folder, best):
            shutil.rmtree(old)
    return final


def load_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer) -> dict[str, Any] | None:
    """Load the newest checkpoint that verifies; those passed over are named in a warning.

    Args:
        folder: where checkpoints lie; need not exist.
        module: gets its parameters and buffers back.
        optimizer: gets its state back.

    Returns:
        The scalars that were saved, among them ``step``, or None if there is no valid checkpoint.
    """
    for path in reversed(_checkpoints(folder)):
        if problem := _problem_with(path):
            log.warning("checkpoint %s is passed over: %s", path, problem)
            continue
        load_module(module, path / "model.safetensors")
        _restore_optimizer(module, optimizer, load_file(path / "optimizer.safetensors"))
        return cast(dict[str, Any], json.loads((path / "state.json").read_text(encoding="utf-8")))
    return None


def load_weights(folder: Path, step: int, module: nn.Module) -> None:
    """Load the parameters and buffers of the checkpoint of one step.

    Raises:
        UserError: if it is damaged.
    """
    path = _path_of(folder, step)
    if problem := _problem_with(path):
        raise user_error("outputs", f"the best checkpoint, {path}, cannot be used: {problem} --fresh trains anew.")
    load_module(module, path / "model.safetensors")


def save_module(module: nn.Module, path: Path) -> None:
    """Write parameters and buffers as safetensors; a tensor with several names (tied weights) is written once."""
    save_file(_copies(module_tensors(module)), path)


def load_module(module: nn.Module, path: Path) -> None:
    """Load what ``save_module`` wrote; every parameter and buffer must be there.

    Raises:
        ValueError: if the file is of another module.
    """
    tensors = load_file(path)
    own = module_tensors(module)
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(f"{path} is of another module; missing: {missing[:5]}, unexpected: {unexpected[:5]}")
    for name, tensor in own.items():
        assign(tensor, tensors[name])


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of a module, each by the first of its names."""
    seen: set[int] = set()
    distinct = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            distinct[name] = tensor
    return distinct


def _optimizer_tensors(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(module: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    optimizer.state.clear()
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        # Moments lie as their parameter lies; counters are numbers.
        restored = (
            torch.zeros_like(parameter, dtype=tensor.dtype) if tensor.ndim else torch.zeros_like(tensor, device=parameter.device)
        )
        assign(restored, tensor)
        optimizer.state.setdefault(parameter, {})[entry] = restored


def _copies(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    copies = {}
    for name, tensor in tensors.items():
        complete = whole(tensor)  # on every process, since those that hold parts must give them
        if keep:
            copies[name] = complete.to("cpu", copy=True).contiguous()
    return copies


def _path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _problem_with(path: Path) -> str | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name in _FILES:
            if _sha256(path / name) != manifest["sha256"][name]:
                return f"{name} is damaged (its checksum is not the one in the manifest)."
        # A manifest can be wrong as well.
        for name in ("model.safetensors", "optimizer.safetensors"):
            with safe_open(path / name, framework="pt"):
                pass
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return f"it cannot be read ({type(error).__name__}: {error})."
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
