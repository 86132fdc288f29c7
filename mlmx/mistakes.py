"""How commands tell what went wrong, and with which exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from mlmx.errors import Problem, UserError, user_error


@contextmanager
def mistakes_told() -> Iterator[None]:
    """Show the user's mistakes without a traceback, and exit 2."""
    try:
        yield
    except UserError as error:
        _tell(error.problems)
        raise typer.Exit(2) from None
    except Exception as error:
        # Named by what they carry, since importing their modules would import Hydra: jobs.JobsFailed, launch.StageFailedError.
        failures = getattr(error, "failures", None)
        if failures is None and not getattr(error, "told_by_log", False):
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if failures and all(failure["user"] for failure in failures) else 1) from None


def _tell(problems: Sequence[Problem]) -> None:
    if len(problems) > 1:
        typer.echo(f"{len(problems)} problems:", err=True)
    for problem in problems:
        typer.echo(f"error: {problem}" if len(problems) == 1 else f"  {problem}", err=True)


def need_writable(folder: Path, setting: str) -> None:
    """Refuse a folder for results that cannot be made or written to, before work is done that could not be kept."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # A full disk still takes empty files.
    except OSError as error:
        raise user_error(setting, f"{folder} cannot be written to: {error.strerror}.") from error
