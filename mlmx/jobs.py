"""Hand checked command lines to Hydra: one job or a sweep of them, with each failure told when it happens.

With ``compose``, ``overrides`` and ``config``, all that knows Hydra.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mlmx import compose
from mlmx.compose import Command, quoted
from mlmx.config import Checked, frozen_config
from mlmx.errors import UserError, user_error

FAILURES = "failures.jsonl"

Job = Callable[[dict[str, Any], Path, list[str]], float | None]


class JobMessages(Callback):  # type: ignore[misc, unused-ignore]
    """Tells which job of a sweep runs, and prints each failure when it happens."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            print(f"job {config.hydra.job.num}: {_overrides_of(config)}", flush=True)  # noqa: T201

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status != JobStatus.FAILED:
            return
        job_return.__class__ = _Failure
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        error = job_return._return_value
        plain = isinstance(error, UserError) or getattr(error, "told_by_log", False)
        told = str(error) if plain else "".join(traceback.format_exception(error)).rstrip()
        print(f"job {config.hydra.job.num} failed: {_overrides_of(config)}\n{told}", file=sys.stderr, flush=True)  # noqa: T201
        record = {"job": config.hydra.job.num, "user": isinstance(error, UserError), "error": str(error).strip().partition("\n")[0]}
        # Jobs may run in other processes, so what failed is told through a file, a line at a time.
        with (Path(config.hydra.sweep.dir) / FAILURES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class _Failure(JobReturn):  # type: ignore[misc, unused-ignore]
    """What a failed job returns to Hydra, which would print a line of its own before the error that tells what is wrong."""

    @property
    def return_value(self) -> Any:
        raise self._return_value


def _overrides_of(config: DictConfig) -> str:
    return " ".join(config.hydra.overrides.task)


def run_jobs(command: Command, checked: Checked, job: Job, *, flags: Sequence[str] = ()) -> None:
    """Run the job of a command line, or the jobs of a sweep, through Hydra.

    Args:
        command: what to compose.
        checked: what ``check`` returned.
        job: called with the frozen config, the run's directory and the overrides; may be sent to another process.
        flags: Hydra's own flags.

    Raises:
        UserError: if the user's mistake stopped the job.
        JobsFailed: if jobs of a sweep failed; each failure was printed.
    """
    given = {line.lstrip("+~").partition("=")[0] for line in checked.overrides}
    extra: list[str] = []
    folder = None
    if checked.configs and not {"hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"} & given:
        folder = _claim(Path(checked.configs[0]["outputs"]) / "runs", checked.configs[0]["name"])
        stamp = folder.name.removesuffix("-" + checked.configs[0]["name"])
        if checked.multirun:
            subdir = f"../{stamp}-${{name}}-${{hydra.job.num}}"
            extra = [f"hydra.sweep.dir={quoted(folder)}", f"hydra.sweep.subdir={quoted(subdir)}"]
        else:
            extra = [f"hydra.run.dir={quoted(folder)}"]

    def run(composed: DictConfig) -> float | None:
        hydra_node = HydraConfig.get()
        with_hydra = OmegaConf.merge({"hydra": {"runtime": {"choices": hydra_node.runtime.choices}}}, composed)
        assert isinstance(with_hydra, DictConfig)
        run_dir = Path(os.path.normpath(hydra_node.runtime.output_dir))
        try:
            config = frozen_config(with_hydra, command.name, hydra_node.overrides.task)
            return job(config, run_dir, list(hydra_node.overrides.task))
        except BaseException:
            with suppress(OSError):  # of a folder that is not empty: what was begun is told there
                run_dir.rmdir()
            raise

    argv = [*flags, *(["--config-dir", str(command.config_dir)] if command.config_dir else []), *checked.overrides, *extra]
    with _scoped([sys.argv[0], *argv]):
        try:
            hydra.main(config_path=str(compose.conf_dir()), config_name=command.config_name, version_base="1.3")(run)()
        except HydraException as error:
            raise user_error("hydra", str(error)) from error
        except Exception:
            if not (folder and checked.multirun and (folder / FAILURES).exists()):
                raise
    if folder and checked.multirun and (folder / FAILURES).exists():
        raise JobsFailed([json.loads(line) for line in (folder / FAILURES).read_text(encoding="utf-8").splitlines()])


class JobsFailed(Exception):  # noqa: N818 - not an error of the program
    """Some jobs of a sweep failed; each was told when it happened."""

    def __init__(self, failures: Sequence[Mapping[str, Any]]) -> None:
        self.failures = list(failures)
        super().__init__(f"{len(failures)} job(s) failed: {', '.join(str(failure['job']) for failure in failures)}")


def _claim(runs: Path, name: str) -> Path:
    """Create a run's folder, with a name that no other run has, whatever starts in the same second."""
    runs.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for i in itertools.count():
        folder = runs / (f"{stamp}.{i}-{name}" if i else f"{stamp}-{name}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError


@contextmanager
def _scoped(argv: list[str]) -> Iterator[None]:
    """Set what Hydra reads from its process: the arguments, and that exceptions come out instead of ``sys.exit(1)``."""
    old_argv, old_full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = old_argv
        if old_full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = old_full_error
