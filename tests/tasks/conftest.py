from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from mlmx.models.encoder import Encoder
from tests.tiny import word_tokenizer


def tiny_encoder(words: list[str]) -> Encoder:
    """A two-layer BERT with one id per word, freshly drawn."""
    tokenizer = word_tokenizer(words)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Encoder(BertForMaskedLM(config), tokenizer)


@pytest.fixture
def make_encoder():
    return tiny_encoder
