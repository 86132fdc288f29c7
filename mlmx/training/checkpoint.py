"""Checkpoints: written whole or not at all, checked when read, never unpickled.

``checkpoints/step-00000012/`` holds ``model.safetensors``, ``optimizer.safetensors``, ``state.json`` and ``manifest.json``, which
has the SHA-256 of the others. It is written under another name, synced to disk and renamed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

log = logging.getLogger(__name__)

_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def save_checkpoint(
    folder: Path, step: int, module: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], *, keep: int
) -> Path:
    """Write a checkpoint and delete those older than the last ``keep``.

    Args:
        folder: where checkpoints lie.
        step: number of steps that are done.
        module: its parameters and buffers are written.
        optimizer: over parameters of the module.
        state: scalars; JSON.
        keep: how many to keep, this one included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}"
    temporary.mkdir()
    save_module(module, temporary / "model.safetensors")
    save_file(_optimizer_tensors(module, optimizer), temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps({**state, "step": step}), encoding="utf-8")
    manifest = {"format": 1, "sha256": {name: _sha256(temporary / name) for name in _FILES}}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    if final.exists():
        # One that was found damaged and passed over; its step has been reached again.
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(folder)
    for old in _checkpoints(folder)[:-keep]:
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


def save_module(module: nn.Module, path: Path) -> None:
    """Write parameters and buffers as safetensors; a tensor with several names (tied weights) is written once."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    tensors = {}
    for name, tensor in module.state_dict().items():
        if tensor.numel() == 0 or (place := _place(tensor)) not in seen:
            tensors[name] = tensor.detach().cpu().contiguous().clone()
            if tensor.numel():
                seen.add(place)
    save_file(tensors, path)


def load_module(module: nn.Module, path: Path) -> None:
    """Load what ``save_module`` wrote; every parameter and buffer must be there.

    Raises:
        ValueError: if the file is of another module.
    """
    tensors = load_file(path)
    own = module.state_dict()
    loaded = {_place(own[name]) for name in tensors if name in own}
    missing = [name for name, tensor in own.items() if name not in tensors and _place(tensor) not in loaded]
    unexpected = [name for name in tensors if name not in own]
    if missing or unexpected:
        raise ValueError(f"{path} is of another module; missing: {missing[:5]}, unexpected: {unexpected[:5]}")
    module.load_state_dict(tensors, strict=False)


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def _optimizer_tensors(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.detach().cpu().contiguous().clone()
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(module: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    optimizer.state.clear()
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        optimizer.state.setdefault(parameter, {})[entry] = tensor.to(parameter.device)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _problem_with(path: Path) -> str | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name in _FILES:
            if _sha256(path / name) != manifest["sha256"][name]:
                return f"{name} is damaged (its checksum is not the one in the manifest)."
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
