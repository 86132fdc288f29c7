from __future__ import annotations

import hashlib
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mlmx.training.checkpoint import Snapshot, load_checkpoint, load_module, save_module, write_checkpoint


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.output = nn.Linear(3, 7)
        self.output.weight = self.embedding.weight
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("counts", torch.arange(4))


def trained(seed: int = 0) -> tuple[Tied, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = Tied()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module.output(module.embedding(torch.tensor([1, 2]))).sum().backward()
    optimizer.step()
    return module, optimizer


def save(folder, step, module, optimizer, state, *, keep):
    write_checkpoint(folder, Snapshot.of(module, optimizer, {**state, "step": step}), keep=keep)


def test_round_trip_with_tied_weights(tmp_path):
    module, optimizer = trained()
    save(tmp_path, 5, module, optimizer, {"tokens": 9}, keep=1)
    other, other_optimizer = trained(seed=1)
    assert load_checkpoint(tmp_path, other, other_optimizer) == {"tokens": 9, "step": 5}
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert other.output.weight is other.embedding.weight
    for parameter, restored in zip(module.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            assert torch.equal(value, other_optimizer.state[restored][key])
    assert len(load_file(tmp_path / "step-00000005" / "model.safetensors")) == 5


def test_oldest_are_deleted_and_nothing_else_is_left(tmp_path):
    module, optimizer = trained()
    (tmp_path / ".step-00000003").mkdir()  # what a power cut left behind
    for step in (1, 2, 3):
        save(tmp_path, step, module, optimizer, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert sorted(path.name for path in (tmp_path / "step-00000003").iterdir()) == [
        "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["truncated", "no_manifest", "missing_file"])
def test_damaged_ones_are_passed_over(tmp_path, caplog, damage):
    module, optimizer = trained()
    for step in (1, 2):
        save(tmp_path, step, module, optimizer, {}, keep=2)
    newest = tmp_path / "step-00000002"
    if damage == "truncated":
        (newest / "optimizer.safetensors").write_bytes((newest / "optimizer.safetensors").read_bytes()[:-10])
    else:
        (newest / ("manifest.json" if damage == "no_manifest" else "state.json")).unlink()
    state = load_checkpoint(tmp_path, module, optimizer)
    assert state is not None
    assert state["step"] == 1
    assert "step-00000002 is passed over" in caplog.text


def test_what_is_no_safetensors_file_is_passed_over_whatever_its_manifest_says(tmp_path, caplog):
    module, optimizer = trained()
    save(tmp_path, 1, module, optimizer, {}, keep=1)
    folder = tmp_path / "step-00000001"
    (folder / "model.safetensors").write_bytes(pickle.dumps({"embedding.weight": [1.0]}))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["model.safetensors"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert load_checkpoint(tmp_path, module, optimizer) is None
    assert "it cannot be read (SafetensorError" in caplog.text


def test_nothing_to_load(tmp_path):
    module, optimizer = trained()
    assert load_checkpoint(tmp_path / "none", module, optimizer) is None


def test_a_file_of_another_module_is_refused(tmp_path):
    save_module(nn.Linear(2, 2), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="another module"):
        load_module(Tied(), tmp_path / "m.safetensors")
