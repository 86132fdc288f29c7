"""Pretraining objectives: one file each. Start with ``objective.py`` (the contract), then ``mlm.py`` (the shortest one)."""
