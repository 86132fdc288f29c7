"""A progress bar around an iterable, on standard error and only where somebody can see it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress_bar(items: Iterable[Item], description: str, *, total: int = 0, show: bool = True) -> Iterator[Item]:
    """Yield the items and show how many have gone by.

    Args:
        items: what to iterate over.
        description: what is being done.
        total: how many items there are; 0 if unknown.
        show: whether to show anything; nothing is shown either where standard error is no terminal.
    """
    if not (show and sys.stderr.isatty()):
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total or None)
        for item in items:
            yield item
            progress.advance(task)
