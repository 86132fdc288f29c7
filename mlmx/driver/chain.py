"""Running a chain: prepare, annotate, collect, pretrain, finetune, evaluate, and the summary of it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlmx.driver import execute, launch
from mlmx.driver.command import StageFailedError, run_attached
from mlmx.driver.plan import plan
from mlmx.driver.preview import preview
from mlmx.driver.say import say
from mlmx.driver.signals import time_limit
from mlmx.driver.stages import advice, stages_of
from mlmx.driver.storage import told_if_full
from mlmx.driver.summary import Summary
from mlmx.driver.sweep import end_with_main_process
from mlmx.driver.task_data import check_task_data
from mlmx.errors import user_error

__all__ = ["plan", "preview", "run", "stages_of"]

_TRACKING = "mlmx.training.tracking"
_TRACKING_SECONDS = 600.0


def run(
    config: Mapping[str, Any],
    *,
    run_dir: Path,
    overrides: Sequence[str],
    fresh: bool | float = False,
    worker: str = launch.WORKER,
) -> float | None:
    """Carry out the stages of a run and write its summary.

    Args:
        config: the frozen config.
        run_dir: the run's own folder, ``outputs/runs/<time>-<name>``.
        overrides: what the user typed.
        fresh: build everything anew that was made before this command began (or before a time in seconds since 1970).
        worker: the module that carries out a stage.

    Returns:
        The score that ``sweep_metric`` names, if it names one.

    Raises:
        UserError: if the user can mend what went wrong.
        StageFailedError: if a stage failed otherwise.
    """
    end_with_main_process()
    if fresh and config["parallel"]["num_nodes"] > 1:
        raise user_error("--fresh", "several nodes cannot agree on what is old; move the stages to build anew out of the way.")
    with told_if_full(Path(config["outputs"])):
        # What fails here was never begun, and leaves no trace.
        placed = execute.checked_stages(config, fresh=fresh)
        check_task_data(placed, fresh=fresh)
        for line in advice(config):
            say(f"warning: {line}")
        summary = Summary(run_dir, config, overrides)
        try:
            with time_limit(config["parallel"]["time_limit_minutes"]):
                num_run = execute.run_stages(placed, fresh=fresh, worker=worker, done=summary.add)
        except BaseException as error:
            with suppress(OSError):  # The error itself is to be seen, also where it can no longer be written down.
                summary.write("failed", error)
            raise
        summary.write("finished")
    summary.show()
    if num_run and config["tracker"]["mode"] != "disabled":
        _publish(run_dir)
    return summary.score(config["sweep_metric"]) if config["sweep_metric"] else None


def _publish(run_dir: Path) -> None:
    """Show the chain in the tracker; a run does not fail by it."""
    with (run_dir / "tracking.log").open("w", encoding="utf-8") as log:
        try:
            log.write(run_attached(_TRACKING, str(run_dir), output=log, timeout_seconds=_TRACKING_SECONDS))
        except StageFailedError as error:
            say(f"warning: the chain was not shown in the tracker: {error}; see {run_dir / 'tracking.log'}")
