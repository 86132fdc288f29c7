"""What folders of Sentence-Transformers say is read, kept and written."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from mlmx.errors import UserError
from mlmx.models.load import load_encoder
from mlmx.models.sentence import SentenceModel
from mlmx.tasks.embedding import Embedding
from tests.tiny import numbered_tokenizer, scratch_encoder

SAID = SentenceModel(
    pooling="cls", normalize=True, max_length=9, prompts={"query": "w1 ", "passage": "w2 ", "sts": "w3 "}, default_prompt="sts"
)
NOTHING = {"layer": "last", "pooling": None, "normalize": True, "max_length": None}


@pytest.fixture
def folder(tmp_path):
    encoder = scratch_encoder(numbered_tokenizer(32), max_length=16)
    encoder.sentence = SAID
    encoder.save(tmp_path / "encoder")
    return tmp_path / "encoder"


def change(path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def resolved(folder, **settings):
    return Embedding(**NOTHING | settings).resolved(load_encoder(folder), task="x")


def test_a_folder_stays_what_it_is_when_its_encoder_is_trained(folder, tmp_path):
    encoder = load_encoder(folder)
    assert encoder.sentence == SAID
    encoder.save(tmp_path / "trained")
    assert load_encoder(tmp_path / "trained").sentence == SAID


def test_what_is_not_set_is_as_the_folder_says(folder):
    found = resolved(folder)
    assert (found.pooling, found.max_length) == ("cls", 9)
    assert found.prompts == {"query": "w1 ", "document": "w2 ", None: "w3 "}
    assert found.told() == {"layer": 2, "pooling": "cls", "max_length": 9}


def test_an_empty_prompt_is_one_and_the_default_is_for_other_texts_only(folder):
    change(folder / "config_sentence_transformers.json", prompts={"document": "", "passage": "w2 ", "sts": "w3 "})
    assert resolved(folder).prompts == {"query": "", "document": "", None: "w3 "}
    change(folder / "config_sentence_transformers.json", default_prompt_name=None)
    assert set(resolved(folder).prompts.values()) == {""}


def test_a_layer_that_only_cuts_is_a_width(tmp_path):
    encoder = scratch_encoder(numbered_tokenizer(32), max_length=16)
    encoder.sentence = replace(SAID, width=8)
    encoder.save(tmp_path)
    assert json.loads((tmp_path / "modules.json").read_text())[-1]["path"] == "3_Normalize"
    assert load_encoder(tmp_path).sentence == encoder.sentence
    assert resolved(tmp_path).width == 8
    assert resolved(tmp_path, width=4).told()["width"] == 4
    with pytest.raises(UserError, match=r"task\.x\.width: 33 is more than the width of the encoder, 32"):
        resolved(tmp_path, width=33)
    save_file({"linear.weight": torch.eye(8, 32).flip(0).contiguous()}, tmp_path / "2_Dense" / "model.safetensors")
    assert load_encoder(tmp_path).sentence.other_modules == ("Dense",)
    change(tmp_path / "2_Dense" / "config.json", activation_function="torch.nn.modules.activation.Tanh")
    assert load_encoder(tmp_path).sentence.other_modules == ("Dense",)


def test_what_is_set_holds(folder):
    found = resolved(folder, pooling="max", max_length=12, layer=1, prompts={"query": "", None: "w4 "})
    assert (found.layer, found.pooling, found.max_length) == (1, "max", 12)
    assert found.prompts == {"query": "", "document": "w2 ", None: "w4 "}


def test_other_folders_say_nothing(tmp_path):
    scratch_encoder(numbered_tokenizer(32), max_length=16).save(tmp_path)
    assert load_encoder(tmp_path).sentence is None
    found = resolved(tmp_path)
    assert (found.pooling, found.max_length, set(found.prompts.values())) == ("mean", 16, {""})


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"embedding_dimension": 32, "pooling_mode": "max"}, "max"),  # from version 6 on
        ({"pooling_mode": ["cls", "mean"]}, "cls+mean"),
        ({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
    ],
)
def test_poolings_of_old_and_new_folders(folder, config, pooling):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert load_encoder(folder).sentence.pooling == pooling


def test_the_length_may_stand_with_the_tokenizer(folder):
    change(folder / "sentence_bert_config.json", max_seq_length=None)
    assert load_encoder(folder).sentence.max_length is None
    change(folder / "tokenizer_config.json", model_max_length=7)
    assert load_encoder(folder).sentence.max_length == 7


def test_what_mlmx_does_not_do_is_refused_unless_a_pooling_is_set(folder, tmp_path):
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    with pytest.raises(UserError, match=r"task\.x\.pooling: the encoder's folder says 'lasttoken', which mlmx has not; set mean"):
        resolved(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=r"makes vectors by what mlmx does not do: Dense"):
        resolved(folder)
    assert resolved(folder, pooling="mean").pooling == "mean"
    load_encoder(folder).save(tmp_path / "without")
    assert not (tmp_path / "without" / "modules.json").exists()
