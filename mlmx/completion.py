"""What a shell completes on the command line. Composes configs, so that Hydra is imported when the shell asks."""

from __future__ import annotations

import os
from pathlib import Path

import typer

_PRIMARY_CONFIGS = ("pretrain", "finetune", "eval", "run")


def _primary_config(command: str) -> str:
    """Return the name of the primary config that a command composes."""
    return command if command in _PRIMARY_CONFIGS else "pretrain" if command == "preview" else "run"


def complete(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return what an override may go on with: groups, their options, and settings."""
    from mlmx.compose import Command, Composer

    cut = 0
    words = list(ctx.params.get("overrides") or [])
    if os.environ.get("_MLMX_COMPLETE") == "complete_bash":
        # Bash breaks words at =, : and @, and replaces only what comes after the last of them.
        typed = os.environ["COMP_WORDS"].split()
        current = int(os.environ["COMP_CWORD"])
        given = [*typed[:current], typed[current] if current < len(typed) else ""]
        cut = len(given[-1]) if given[-1] not in ("=", ":", "@") else 0
        glued: list[str] = []
        for word in given:
            breaks = word in ("=", ":", "@")
            if glued and (breaks or (glued[-1][-1:] in ("=", ":", "@"))):
                glued[-1] += word
            else:
                glued.append(word)
        words, incomplete = [word for word in glued[2:-1] if "=" in word and not word.startswith("-")], glued[-1]
        cut = len(incomplete) - cut
    command = ctx.info_name or "run"
    folder = ctx.params.get("config_dir")
    composer = Composer(Command(command, _primary_config(command), Path(folder) if folder else None))
    found = composer.complete(words, incomplete)
    while len(found) == 1 and found[0].endswith(("=", ".", "/")):  # a single match would be closed with a space
        deeper = composer.complete(words, found[0])
        if not deeper or deeper == found:
            break
        found = deeper
    return [match[cut:] for match in found]
