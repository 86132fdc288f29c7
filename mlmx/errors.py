"""What goes wrong by the user's hand, told so that they can mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in what the user gave.

    Attributes:
        where: the setting (``objective.mask_ratio``) or the file and line (``corpus.txt:12``).
        message: what is wrong with it, and what is allowed.
        nearest: the valid name that was probably meant, if there is one.
    """

    where: str
    message: str
    nearest: str | None = None

    def __str__(self) -> str:
        hint = f" Did you mean {self.nearest!r}?" if self.nearest else ""
        return f"{self.where}: {self.message}{hint}"


class UserError(Exception):
    """Mistakes of the user: shown without a traceback, exit code 2, all at once."""

    def __init__(self, problems: Problem | Sequence[Problem] | str) -> None:
        if isinstance(problems, str):
            # torch rebuilds the error of a loader worker from the text of its traceback, and from nothing else.
            problems = _problems_in(problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[Problem, ...]]]:
        # Jobs of a parallel sweep raise it in another process.
        return UserError, (self.problems,)


def _problems_in(traceback: str) -> list[Problem]:
    """Read the problems back from a traceback that ends with a :class:`UserError`."""
    problems: list[Problem] = []
    for line in traceback.rpartition(f"{UserError.__name__}: ")[2].splitlines():
        where, separator, message = line.partition(": ")
        if separator or not problems:
            problems.append(Problem(where, message))
        else:
            problems[-1] = Problem(problems[-1].where, f"{problems[-1].message}\n{line}")
    return problems


def user_error(where: str, message: str, nearest: str | None = None) -> UserError:
    """Return a :class:`UserError` with a single problem."""
    return UserError(Problem(where, message, nearest))


def first_problems(problems: Sequence[Problem], most: int = 5) -> list[Problem]:
    """Return the first of many problems, and how many there are in all."""
    if len(problems) <= most:
        return list(problems)
    return [*problems[:most], Problem(problems[most].where, f"and so on: {len(problems)} mistakes in all.")]


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name closest to ``name``, or None if none is close."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return matches[0] if matches else None
