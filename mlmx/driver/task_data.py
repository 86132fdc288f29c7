"""Reading the files of tasks before anything is trained: a mistake in a test set is told at once, not after the training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mlmx.driver.directories import Placed
from mlmx.driver.say import say
from mlmx.errors import Problem, UserError
from mlmx.stage import TRAINING_KINDS


def check_task_data(placed: Sequence[Placed], *, fresh: bool | float = False) -> None:
    """Read what tasks are still to be trained on or judged by, where a training comes first.

    Args:
        placed: the stages; their settings are checked.
        fresh: also those of finished ones.

    Raises:
        UserError: with what is wrong in the data of every task.
    """
    to_run = [one.stage for one in placed if fresh or not one.directory.finished]
    if not any(stage.kind in TRAINING_KINDS for stage in to_run):
        return
    from mlmx.build import build
    from mlmx.inputs import input_settings, told_in_task

    # Data that are not the user's own are as they should be.
    nodes = {
        stage.name: stage.spec["task"]
        for stage in to_run
        if "task" in stage.spec and any(node.get(setting) for _, setting, node in input_settings(stage.spec["task"]))
    }
    if not nodes:
        return
    say(f"reads the data of {', '.join(nodes)}")
    problems: list[Problem] = []
    with _unheard_warnings():
        for name, node in nodes.items():
            try:
                with told_in_task(node):
                    build(node, where=f"task.{name}").check_data()
            except UserError as error:
                problems += error.problems
    if problems:
        raise UserError(list(dict.fromkeys(problems)))


@contextmanager
def _unheard_warnings() -> Iterator[None]:
    # The stages that use the data say the same.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
