"""Files that would do harm if they were trusted."""

import hashlib
import json
import os
import pickle
from contextlib import suppress

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from mlmx.data.annotators.hf import HuggingFaceAnnotator
from mlmx.errors import UserError
from mlmx.models.load import load_encoder
from mlmx.stage import StageDir
from mlmx.training import worker
from mlmx.training.checkpoint import load_checkpoint
from tests.tiny import numbered_tokenizer, scratch_encoder


class Payload:
    """Pickled, it is a call that leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def model_folder(tmp_path):
    """A whole, harmless model."""
    folder = tmp_path / "model"
    scratch_encoder(numbered_tokenizer(32), max_length=16).save(folder)
    load_encoder(folder)
    return folder


def test_the_payload_is_one(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "run")))
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin"])
def test_pickled_weights_are_refused(model_folder, tmp_path, name):
    (model_folder / "model.safetensors").unlink()
    (model_folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    with pytest.raises(UserError, match=rf"model\.source: .*its weights are a pickle \({name}\).*safetensors"):
        load_encoder(model_folder)
    settings = {"revision": None, "layer": "pos", "tag_map": None, "max_length": 16, "batch_tokens": 64}
    with pytest.raises(UserError, match=r"annotator\.path: .*its weights are a pickle"):
        HuggingFaceAnnotator(path=str(model_folder), trust_remote_code=False, **settings).load()
    assert not (tmp_path / "run").exists()


def test_a_pickle_that_calls_itself_safetensors_is_refused(model_folder, tmp_path):
    (model_folder / "model.safetensors").write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    with pytest.raises(UserError, match=r"model\.source: .*cannot be loaded"):
        load_encoder(model_folder)
    assert not (tmp_path / "run").exists()


def test_a_pickled_checkpoint_is_not_unpickled(tmp_path):
    folder = tmp_path / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    harmful = pickle.dumps(Payload(tmp_path / "run"))
    files = {"model.safetensors": harmful, "optimizer.safetensors": harmful, "state.json": b'{"step": 3}'}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "sha256": checksums}))
    module = nn.Linear(2, 2)
    with suppress(SafetensorError):  # Its checksums are right, so it is tried; as what it says it is.
        load_checkpoint(folder.parent, module, torch.optim.AdamW(module.parameters()))
    assert not (tmp_path / "run").exists()


def test_code_that_a_model_brings_along_runs_only_if_the_user_says_so(model_folder, tmp_path):
    (model_folder / "modeling_own.py").write_text(
        f"""
import os
from transformers import BertConfig, BertForMaskedLM
os.makedirs({str(tmp_path / "run")!r}, exist_ok=True)
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertForMaskedLM):
    config_class = OwnConfig
"""
    )
    config = json.loads((model_folder / "config.json").read_text())
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForMaskedLM": "modeling_own.OwnModel"}
    (model_folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    with pytest.raises(UserError, match="it brings code of its own, which runs only with trust_remote_code=true"):
        load_encoder(model_folder)
    assert not (tmp_path / "run").exists()
    load_encoder(model_folder, trust_remote_code=True)
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"_target_": "os.system", "command": "mkdir run"}, "corpus._target_: 'os.system' lies outside mlmx"),
        ({"_target_": "mlmx.driver.launch.suppress"}, "contextlib.suppress, which was only imported there"),
    ],
)
def test_a_stage_that_names_foreign_code_is_refused(tmp_path, node, told):
    stage = StageDir(tmp_path / "prepare-hostile-00000000")
    parallel = {"device": "cpu", "num_threads": 1, "timeout_seconds": 60, "num_shards": 1, "peak_flops": None}
    stage.write_config(
        {
            "kind": "prepare",
            "name": "hostile",
            "fingerprint": "0" * 64,
            "spec": {"corpus": node},
            "parents": {},
            "execution": {"parallel": parallel, "tracker": {"mode": "disabled"}, "plugins": []},
        }
    )
    with pytest.raises(UserError) as caught:
        worker.run(stage)
    assert told in str(caught.value)


def test_the_parents_of_a_stage_lie_beside_it(tmp_path):
    stage = StageDir(tmp_path / "stages" / "eval-x-00000000")
    stage.write_config({"parents": {"model": "../../elsewhere", "encoder": "..", "tokenizer": "prepare-y-00000000"}})
    for role in ("model", "encoder"):
        with pytest.raises(UserError, match=rf"parents\.{role}: .* is no stage beside this one"):
            stage.parent(role)
    assert stage.parent("tokenizer").path.parent == tmp_path / "stages"
