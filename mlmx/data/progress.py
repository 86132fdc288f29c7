"""How far a pass over data is, on standard error: a bar where a person looks on, a line now and then where it goes into a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

Item = TypeVar("Item")

# As often as a training writes one.
_SECONDS_BETWEEN_LINES = 10.0


def _one(item: Any) -> int:
    return 1


def progress_bar(
    items: Iterable[Item], description: str, *, total: int = 0, size: Callable[[Item], int] = _one, show: bool = True
) -> Iterator[Item]:
    """Yield the items and show how much has gone by.

    Args:
        items: what to iterate over.
        description: what is being done.
        total: the size of all items together, about; 0 if unknown.
        size: of an item.
        show: whether to show anything.
    """
    if not show:
        return iter(items)
    return (_bar if sys.stderr.isatty() else _lines)(items, description, total, size)


def _bar(items: Iterable[Item], description: str, total: int, size: Callable[[Item], int]) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total or None)
        for item in items:
            yield item
            progress.advance(task, size(item))


def _lines(items: Iterable[Item], description: str, total: int, size: Callable[[Item], int]) -> Iterator[Item]:
    done = last_done = 0
    last = time.monotonic()
    for item in items:
        yield item
        done += size(item)
        if (passed := time.monotonic() - last) >= _SECONDS_BETWEEN_LINES:
            # The speed since the last line: what was done before an interruption goes by much faster than the rest.
            speed = (done - last_done) / passed
            left = f" of about {total:,}, {timedelta(seconds=round((total - done) / speed))} left" if total > done else ""
            sys.stderr.write(f"{description}: {done:,}{left}, {speed:,.0f}/s\n")
            sys.stderr.flush()
            last, last_done = last + passed, done
