"""Corpora, tokenised stores, annotations, and the batches made of them."""
