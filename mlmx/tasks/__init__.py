"""Tasks that judge an encoder: one file each. Start with ``task.py`` (the contract), then ``bitext.py``."""
