"""Tokenizers, encoders and trainings as small as they can be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mlmx.models.encoder import Encoder
from mlmx.models.load import Scratch

ROOT = Path(__file__).parents[1]
SPECIALS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}

TRAINER: dict[str, Any] = {
    "max_steps": 20,
    "max_epochs": None,
    "max_tokens": None,
    "max_supervised_tokens": None,
    "max_seconds": None,
    "max_flops": None,
    "batch_tokens": None,
    "batch_examples": 8,
    "batch_warmup_tokens": None,
    "batch_warmup_start_ratio": None,
    "micro_batch_tokens": None,
    "max_length": 128,
    "overlong": "split",
    "learning_rate": 1e-3,
    "schedule": "linear",
    "warmup_ratio": 0.1,
    "warmup_steps": None,
    "warmup_tokens": None,
    "decay_ratio": None,
    "layer_decay": None,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "betas": (0.9, 0.98),
    "eps": 1e-6,
    "max_grad_norm": 1.0,
    "dropout": 0.0,
    "precision": "float32",
    "compile": False,
    "activation_checkpointing": False,
    "on_nonfinite": "stop",
    "log_every_steps": 1,
    "validation_rows": 0,
    "validate_every_steps": None,
    "export": "last",
    "checkpoint_every_steps": None,
    "checkpoint_every_minutes": None,
    "keep_checkpoints": 2,
    "num_workers": 0,
}


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with an id per word, after those of the special tokens."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIALS.values(), *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS)


def numbered_tokenizer(vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with the words w0, w1, ..."""
    return word_tokenizer(f"w{i}" for i in range(vocabulary_size - len(SPECIALS)))


def scratch_encoder(
    tokenizer: PreTrainedTokenizerFast, *, max_length: int, seed: int = 0, architecture: str = "bert", hidden_size: int = 32,
    num_layers: int = 2, attention: str = "bidirectional",
) -> Encoder:  # fmt: skip
    """An encoder with random weights."""
    torch.manual_seed(seed)
    return Scratch(
        tokenizer,
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=4,
        intermediate_size=2 * hidden_size,
        max_length=max_length,
        initializer_range=0.02,
        attention=attention,
        tokenizer=None,
    ).build()


def run_ranks(number: int, module: str, *arguments: Path | str) -> None:
    """Run a module of these tests as the ranks of one training."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}", "-m", module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *map(str, arguments)], cwd=ROOT, timeout=280, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
