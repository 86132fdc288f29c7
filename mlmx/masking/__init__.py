"""Masking policies: pure functions from units and keys to positions. No torch."""
