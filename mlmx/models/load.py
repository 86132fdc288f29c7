"""Where encoders come from: a hub name, a local folder, a stage, or random weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from mlmx.build import NonNegativeFloat, Positive
from mlmx.data.tokenizer import MASK
from mlmx.errors import UserError, user_error
from mlmx.loading import ONLY_SAFETENSORS, reason_for
from mlmx.models.attention import Direction
from mlmx.models.encoder import Encoder, language_model_class
from mlmx.models.quiet import quiet_transformers
from mlmx.models.sentence import read_sentence_model
from mlmx.stage import encoder_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Source(ABC):
    """Where an encoder comes from: what a stage's ``model`` is."""

    @abstractmethod
    def build(self) -> Encoder:
        """Return the encoder; what is drawn at random comes from torch's global generator."""


class Scratch(Source):
    """An encoder of a given size with random weights and a language-model head."""

    def __init__(
        self,
        trained_tokenizer: PreTrainedTokenizerBase | None,
        *,
        architecture: Literal["bert", "roberta", "modernbert"],
        num_layers: Positive,
        hidden_size: Positive,
        num_heads: Positive,
        intermediate_size: Positive,
        max_length: Positive,
        initializer_range: NonNegativeFloat,
        attention: Direction,
        tokenizer: object,
    ) -> None:
        """Describe the encoder.

        Args:
            trained_tokenizer: what the tokenizer's own stage made; needed to build.
            architecture: family, as Transformers names it.
            num_layers: number of layers.
            hidden_size: width; a multiple of ``num_heads``.
            num_heads: attention heads per layer.
            intermediate_size: width inside a feed-forward layer.
            max_length: tokens of the longest row, special ones included.
            initializer_range: standard deviation of the initial weights.
            attention: which tokens a token sees, all of its row (``bidirectional``) or those before it and itself (``causal``):
                in tasks, in the exported folder, and in objectives that do not say it themselves, as ``clm`` does.
            tokenizer: how the tokenizer is trained.
        """
        if hidden_size % num_heads:
            raise user_error("model.hidden_size", f"{hidden_size} is not a multiple of num_heads={num_heads}.")
        self.trained_tokenizer = trained_tokenizer
        self.architecture = architecture
        self.max_length = max_length
        self.attention: Direction = attention
        self.tokenizer = tokenizer
        self._sizes = {
            "num_hidden_layers": num_layers,
            "hidden_size": hidden_size,
            "num_attention_heads": num_heads,
            "intermediate_size": intermediate_size,
            "initializer_range": initializer_range,
        }

    def build(self) -> Encoder:
        if self.trained_tokenizer is None:
            raise ValueError("an encoder from scratch needs its trained tokenizer")
        with quiet_transformers():
            model = AutoModelForMaskedLM.from_config(self.config(len(self.trained_tokenizer)))
        encoder = Encoder(model, self.trained_tokenizer)
        if encoder.direction != self.attention:
            encoder.direct(self.attention)
        return encoder

    def config(self, vocab_size: int) -> PreTrainedConfig:
        """Return the Transformers config for a vocabulary of this size."""
        pad_id: int = getattr(self.trained_tokenizer, "pad_token_id", None) or 0
        settings: dict[str, Any] = {
            **self._sizes,
            "vocab_size": vocab_size,
            "max_position_embeddings": self.max_length,
            "pad_token_id": pad_id,
            "bos_token_id": getattr(self.trained_tokenizer, "bos_token_id", None),
            "eos_token_id": getattr(self.trained_tokenizer, "eos_token_id", None),
        }
        if self.architecture == "modernbert":
            settings["cls_token_id"] = getattr(self.trained_tokenizer, "cls_token_id", None)
            settings["sep_token_id"] = getattr(self.trained_tokenizer, "sep_token_id", None)
        else:
            # Rows have no segment types here; dropout is the trainer's setting.
            settings |= {"type_vocab_size": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        if self.architecture == "roberta":
            settings["max_position_embeddings"] += pad_id + 1
        return AutoConfig.for_model(self.architecture, **settings)


class Pretrained(Source):
    """An encoder with the weights and the tokenizer of a hub repository, a local folder or an mlmx stage."""

    def __init__(
        self,
        _: object = None,
        /,
        *,
        source: str,
        revision: str | None,
        trust_remote_code: bool,
        attention: Direction | None,
        add_mask_token: bool,
    ) -> None:
        """Describe the encoder.

        Args:
            _: ignored; a pretrained encoder brings its own tokenizer.
            source: hub name, Hugging Face folder, or stage directory.
            revision: commit, tag or branch of a hub repository; null for folders.
            trust_remote_code: run code that the repository brings along.
            attention: which tokens a token sees, all of its row (``bidirectional``) or those before it and itself (``causal``):
                in tasks, in the exported folder, and in objectives that do not say it themselves, as ``clm`` does. Null: as the
                encoder was trained; a decoder that mlmx did not write needs it said.
            add_mask_token: give a tokenizer without a mask token one, and the model an embedding for it.
        """
        self.source = source
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self.attention: Direction | None = attention
        self.add_mask_token = add_mask_token

    def build(self) -> Encoder:
        return load_encoder(
            self.source,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            attention=self.attention,
            add_mask_token=self.add_mask_token,
        )

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return its tokenizer alone."""
        tokenizer = load_tokenizer(self.source, revision=self.revision, trust_remote_code=self.trust_remote_code)
        return with_mask_token(tokenizer) if self.add_mask_token else tokenizer

    def config(self) -> PreTrainedConfig:
        """Return the Transformers config, without any weights."""
        config = load_config(self.source, revision=self.revision, trust_remote_code=self.trust_remote_code)
        if self.add_mask_token:
            config.vocab_size = max(config.vocab_size, len(self.load_tokenizer()))
        return config


def load_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attention: Direction | None = None,
    add_mask_token: bool = False,
) -> Encoder:
    """Load an encoder and its tokenizer.

    A language-model head is kept if the checkpoint has all of its weights; no weight is drawn at random but that of a mask token.

    Args:
        source: hub name, Hugging Face folder, or stage directory with an ``encoder/``.
        revision: of a hub repository.
        trust_remote_code: run code that the repository brings along.
        attention: see ``Pretrained``.
        add_mask_token: see ``Pretrained``.

    Raises:
        UserError: if there is nothing to load there, weights are missing, or it is a decoder and ``attention`` does not say what
            is to become of it.
    """
    config = load_config(source, revision=revision, trust_remote_code=trust_remote_code)
    if config.is_encoder_decoder:
        raise user_error("model.source", f"{encoder_folder(source)} is a {config.model_type} with a decoder; mlmx takes encoders.")
    tokenizer = load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    has_head_class = any(type(config) in auto._model_mapping for auto in (AutoModelForMaskedLM, AutoModelForCausalLM))
    loader = language_model_class(config) if has_head_class or trust_remote_code else AutoModel
    where = str(encoder_folder(source))
    model, report = _load(loader, where, config=config, revision=revision, trust_remote_code=trust_remote_code, dtype=torch.float32)
    prefix = model.base_model_prefix + "."
    missing = {key for key in report["missing_keys"] if not _is_pooler(key)}
    missing_base = sorted(key for key in missing if key.startswith(prefix) or model is model.base_model)
    if missing_base:
        raise user_error("model.source", f"{where} lacks weights of the encoder: {', '.join(missing_base[:5])} ...")
    if add_mask_token:
        tokenizer = with_mask_token(tokenizer)
        if len(tokenizer) > config.vocab_size:
            model.resize_token_embeddings(len(tokenizer))
    encoder = Encoder(model.base_model if missing else model, tokenizer)
    if attention is not None:
        encoder.direct(attention)
    elif encoder.direction == "causal" and not any(getattr(config, said, False) for said in ("is_causal", "is_decoder")):
        message = f"{where} is a {config.model_type}, whose tokens see only those before them; say bidirectional to make an encoder"
        raise user_error("model.attention", f"{message} of it, or causal to leave it so.")
    encoder.sentence = read_sentence_model(where, revision, tokenizer.model_max_length)
    return encoder


def untrained(encoder: Encoder) -> Encoder:
    """Return an encoder of the same kind and size with random weights, always the same ones; how texts become vectors stays."""
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        # A plain copy of the config would ask for packed attention before anyone has tried it.
        config = encoder.base.config
        fresh = Encoder(type(encoder.base)(type(config).from_dict(config.to_dict())), encoder.tokenizer)
        if encoder.head is not None:
            fresh.add_head()
    fresh.sentence = encoder.sentence
    return fresh


def load_tokenizer(source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside an encoder.

    Raises:
        UserError: if there is none, or it cannot tell which word a token belongs to.
    """
    where = str(encoder_folder(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _not_loadable(where, revision, error) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what Transformers makes up where there is none
        raise user_error("model.source", f"{where} has no tokenizer.")
    if not tokenizer.is_fast:
        raise user_error("model.source", f"the tokenizer of {where} has no fast version, which knows the words of its tokens.")
    return tokenizer


def with_mask_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer, now with a mask token if it had none."""
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def load_config(source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load the Transformers config of an encoder."""
    where = str(encoder_folder(source))
    try:
        return AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _not_loadable(where, revision, error) from error


def _load(loader: Any, where: str, **settings: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    # What is missing or left over is judged by us; Transformers would print a table. What it draws for missing weights, which are
    # dropped, must not move the caller's generator.
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            model, report = loader.from_pretrained(where, output_loading_info=True, **ONLY_SAFETENSORS, **settings)
    except (OSError, ValueError, SafetensorError) as error:
        raise _not_loadable(where, settings.get("revision"), error) from error
    return model, report


def _is_pooler(key: str) -> bool:
    return "pooler." in key


def _not_loadable(where: str, revision: str | None, error: Exception) -> UserError:
    at = f" at revision {revision}" if revision and not Path(where).exists() else ""
    return user_error("model.source", f"{where!r}{at} cannot be loaded: {reason_for(error, where)}")
