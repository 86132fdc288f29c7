"""Encoders that mlmx did not train: what loads, what is refused, and in which words."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from mlmx.errors import UserError
from mlmx.models.load import load_encoder
from mlmx.models.quiet import quiet_transformers
from mlmx.tasks.embedding import Embedding
from tests.tiny import SPECIALS, numbered_tokenizer

TEXTS = ["A man rides a Horse.", "Zwei Hunde schlafen", "two dogs sleep, Jane said (in 1999)", "x" * 200]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64}
ROBERTA_SPECIALS = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
ROBERTA_SPECIALS |= {"unk_token": "<unk>", "mask_token": "<mask>"}


def word_pieces(*, lowercase: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = list(SPECIALS.values())
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS)


def unigrams() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ROBERTA_SPECIALS)


def byte_pairs() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = list(SPECIALS.values())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS)


def save(folder, tokenizer, architecture: str, **settings) -> None:
    torch.manual_seed(0)
    with quiet_transformers():
        model = AutoModel.from_config(AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **settings))
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("architecture", "tokenizer", "settings"),
    [
        ("bert", lambda: word_pieces(lowercase=False), {**SIZES, "max_position_embeddings": 64}),
        ("distilbert", lambda: word_pieces(lowercase=True), DISTIL),
        ("xlm-roberta", unigrams, {**SIZES, "max_position_embeddings": 66, "type_vocab_size": 1}),
        ("modernbert", byte_pairs, {**SIZES, "max_position_embeddings": 64, "local_attention": 8, "pad_token_id": 0}),
    ],
)
def test_vectors_are_those_of_transformers(tmp_path, architecture, tokenizer, settings):
    save(tmp_path, tokenizer(), architecture, **settings)
    encoder = load_encoder(tmp_path).eval()
    embedding = Embedding(layer="last", pooling="mean", normalize=False, max_length=None).resolved(encoder, task="x")
    assert embedding.max_length == 64
    ours = embedding.vectors(encoder, TEXTS, task="x", what="texts", batch_tokens=80)
    own, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    for text, vector in zip(TEXTS, ours, strict=True):
        encoded = own(text, return_tensors="pt", truncation=True, max_length=64, return_token_type_ids=False)
        with torch.no_grad():
            states = model(**encoded).last_hidden_state[0]
        torch.testing.assert_close(torch.from_numpy(vector), states.mean(dim=0), atol=1e-5, rtol=1e-5)


@pytest.fixture
def bert(tmp_path):
    save(tmp_path / "bert", numbered_tokenizer(32), "bert", **SIZES, max_position_embeddings=64)
    return tmp_path / "bert"


def refused(folder) -> str:
    with pytest.raises(UserError) as caught:
        load_encoder(folder, revision="main")
    message = str(caught.value)
    assert message.startswith("model.source: ")
    assert "revision" not in message  # a folder has none
    return message


def test_folders_that_lack_something(bert):
    weights = (bert / "model.safetensors").read_bytes()
    (bert / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "cannot be loaded: " in refused(bert)
    (bert / "model.safetensors").unlink()
    assert "no file named model.safetensors" in refused(bert)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bert / name).unlink()
    assert refused(bert).endswith("bert has no tokenizer.")
    (bert / "config.json").unlink()
    assert refused(bert).endswith("it has no config.json.")


def test_weights_of_another_size(bert):
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lacks weights of the encoder: bert.encoder.layer.2" in refused(bert)


def test_of_a_decoder_must_be_said_what_is_to_become_of_it(tmp_path):
    for architecture, settings in {
        "gpt2": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 2, "eos_token_id": 3},
        "llama": {**SIZES, "max_position_embeddings": 64},
    }.items():
        save(tmp_path / architecture, numbered_tokenizer(32), architecture, **settings)
        with pytest.raises(UserError, match=f"model.attention: .* is a {architecture}, whose tokens see only those before them"):
            load_encoder(tmp_path / architecture)
    save(tmp_path / "t5", numbered_tokenizer(32), "t5", d_model=32, num_layers=2, num_heads=4, d_ff=32, d_kv=8)
    assert "is a t5 with a decoder" in refused(tmp_path / "t5")
