"""Corpora, tokenised shards, annotations, and the batches made of them."""
