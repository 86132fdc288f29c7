"""Predicting what stands at a masked place, where that is a token or an n-gram."""

# N masked units, D width, E width of an embedding, V vocabulary, K n-grams

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class IdentityHead(nn.Module):
    """Logits over tokens and n-grams, (N, D) to (N, V + K): a layer with GELU and layer normalisation, then their embeddings."""

    def __init__(self, hidden_size: int, words: nn.Embedding, ngrams: nn.Embedding, *, initializer_range: float) -> None:
        """Share two tables of embeddings.

        Args:
            hidden_size: D.
            words: of the tokens, (V, E).
            ngrams: of the n-grams, (K, E).
            initializer_range: standard deviation of the initial weights.
        """
        super().__init__()
        self.dense = nn.Linear(hidden_size, words.embedding_dim)
        self.norm = nn.LayerNorm(words.embedding_dim)
        self.words = nn.Linear(words.embedding_dim, words.num_embeddings)
        self.ngrams = nn.Linear(ngrams.embedding_dim, ngrams.num_embeddings)
        nn.init.normal_(self.dense.weight, std=initializer_range)
        for linear in (self.dense, self.words, self.ngrams):
            nn.init.zeros_(linear.bias)
        self.words.weight, self.ngrams.weight = words.weight, ngrams.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (N, V + K)."""
        known = self.norm(F.gelu(self.dense(hidden)))
        return torch.cat([self.words(known), self.ngrams(known)], dim=1)
