"""Encoders over Transformers, packed attention, heads and pooling."""
