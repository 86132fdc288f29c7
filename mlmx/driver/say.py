"""What the driver tells the person at the terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table


def say(line: str) -> None:
    """Print one line, whole however long it is."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def show(text: str) -> None:
    """Pass on what workers print."""
    sys.stdout.write(text)
    sys.stdout.flush()


def show_table(table: Table) -> None:
    """Print a table as wide as it needs to be where the output is no terminal."""
    console = Console()
    Console(width=None if console.is_terminal else 200).print(table)
