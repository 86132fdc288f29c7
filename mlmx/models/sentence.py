"""Folders of Sentence-Transformers: an encoder, and what they say of how a text becomes a vector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import cached_file

# D width of an encoder's vectors, W what is kept of it

# Names of the poolings in the files of Sentence-Transformers, before version 6 and from then on.
_FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_IDENTITY, _WEIGHTS, _WEIGHT = "torch.nn.modules.linear.Identity", "model.safetensors", "linear.weight"
_MODULES, _PROMPTS, _LENGTH = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class SentenceModel:
    """How a text becomes a vector, as a folder of Sentence-Transformers says.

    Attributes:
        pooling: ``mean``, ``cls`` and ``max`` are those of ``mlmx.models.pooling``; mlmx has neither others nor several, joined by
            ``+``.
        normalize: whether vectors are scaled to length 1.
        max_length: tokens of a text, special ones included; None: what the tokenizer says.
        prompts: what is put before a text, by what the text is for, such as ``query`` and ``document``.
        default_prompt: the prompt of texts of which nobody says what they are for.
        width: how many coordinates of a pooled vector are kept, the first ones; None: all.
        other_modules: what the folder has beside, such as ``Dense``, which mlmx does not run.
    """

    pooling: str
    normalize: bool
    max_length: int | None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    width: int | None = None
    other_modules: tuple[str, ...] = ()

    def prompt(self, *names: str) -> str:
        """Return the first prompt there is under one of these names, or, without names, the default one; empty if there is none."""
        return next((self.prompts[name] for name in names or (self.default_prompt or "",) if name in self.prompts), "")

    def write(self, folder: Path, hidden_size: int) -> None:
        """Write its files beside an encoder, in the form that all versions of Sentence-Transformers read.

        Args:
            folder: the encoder's.
            hidden_size: width of its vectors.
        """
        steps = [("Transformer", ""), ("Pooling", "1_Pooling")]
        if self.width is not None:
            steps.append(("Dense", "2_Dense"))
        if self.normalize:
            steps.append(("Normalize", f"{len(steps)}_Normalize"))
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(steps)
        ]
        for _, path in steps:
            (folder / path).mkdir(exist_ok=True)
        if self.width is not None:
            _write_cut(folder / "2_Dense", hidden_size, self.width)
        flags = {flag: name == self.pooling for name, flag in _FLAGS.items()}
        _write(folder / _MODULES, modules)
        _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size, **flags, "include_prompt": True})
        _write(folder / _LENGTH, {"max_seq_length": self.max_length, "do_lower_case": False})
        prompts = {"prompts": dict(self.prompts), "default_prompt_name": self.default_prompt}
        _write(folder / _PROMPTS, {**prompts, "similarity_fn_name": "cosine" if self.normalize else "dot"})


def read_sentence_model(where: str, revision: str | None, tokenizer_length: int) -> SentenceModel | None:
    """Return what a folder or hub repository says; None where it is none of Sentence-Transformers.

    Args:
        where: the folder or repository.
        revision: of the repository.
        tokenizer_length: what the tokenizer says of how many tokens a text has at most.
    """

    def found(path: str) -> Path | None:
        file = cached_file(
            where,
            path,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if file is None else Path(file)

    def read(path: str) -> Any:
        file = found(path)
        return None if file is None else json.loads(file.read_text(encoding="utf-8"))

    modules = read(_MODULES)
    if modules is None:
        return None
    paths = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    pooling = (read(f"{paths['Pooling']}/config.json") or {}) if "Pooling" in paths else {}
    prompts, length = read(_PROMPTS) or {}, read(_LENGTH) or {}
    width = None
    if "Dense" in paths:
        width = _cut(read(f"{paths['Dense']}/config.json") or {}, found(f"{paths['Dense']}/{_WEIGHTS}"))
    own = ("Transformer", "Pooling", "Normalize", *(["Dense"] if width is not None else []))
    others = [name for name in paths if name not in own]
    if not pooling.get("include_prompt", True):
        others.append("Pooling without the prompt")
    if length.get("do_lower_case"):
        others.append("lowercasing")
    return SentenceModel(
        pooling="+".join(_poolings(pooling)),
        normalize="Normalize" in paths,
        max_length=length.get("max_seq_length") or (tokenizer_length if tokenizer_length < _UNLIMITED else None),
        prompts=prompts.get("prompts") or {},
        default_prompt=prompts.get("default_prompt_name"),
        width=width,
        other_modules=tuple(others),
    )


# Tokenizers that do not know say 10^30.
_UNLIMITED = 10**9


def _poolings(config: Mapping[str, Any]) -> list[str]:
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        return [mode] if isinstance(mode, str) else list(mode)
    return [name for name, flag in _FLAGS.items() if config.get(flag)] or ["mean"]


def _write_cut(folder: Path, hidden_size: int, width: int) -> None:
    # Sentence-Transformers cuts vectors by an argument only, and after they are scaled; a layer says it in the folder.
    config = {"in_features": hidden_size, "out_features": width, "bias": False, "activation_function": _IDENTITY}
    _write(folder / "config.json", config)
    save_file({_WEIGHT: torch.eye(width, hidden_size)}, folder / _WEIGHTS)


def _cut(config: Mapping[str, Any], weights: Path | None) -> int | None:
    # How many coordinates a layer keeps that does nothing else; None if it does.
    if weights is None or config.get("bias", True) or config.get("activation_function") != _IDENTITY or config.get("use_residual"):
        return None
    weight_WD = load_file(weights).get(_WEIGHT)
    return len(weight_WD) if weight_WD is not None and torch.equal(weight_WD, torch.eye(*weight_WD.shape)) else None


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
