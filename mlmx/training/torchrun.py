"""torchrun, which leaves it to the workers to tell what went wrong: its own traceback says only that one of them ended.

Who is killed cannot tell, so torchrun does it for them: the others only saw that a connection was closed.
"""

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from mlmx.stage import DRIVER_VARIABLE, StageDir, ending_of


def _tell_of_killed(stage: StageDir, failures: Mapping[int, ProcessFailure]) -> None:
    """Write into the status which workers were killed, in place of what that made of the others."""
    # SIGTERM is how torchrun itself ends the others.
    killed = [
        f"worker {rank} (pid {failure.pid}) {ending_of(failure.exitcode)}"
        for rank, failure in failures.items()
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
    ]
    launch = os.environ.get(DRIVER_VARIABLE, "").split()[-1:]
    status = stage.status()
    if killed and launch == [status.get("launch")] and not (status.get("error") or {}).get("problems"):
        with suppress(OSError):
            stage.write_status("failed", error={"message": "; ".join(killed)}, launch=launch[0])


if __name__ == "__main__":
    arguments = parse_args(None)  # type: ignore[no-untyped-call]
    try:
        run(arguments)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _tell_of_killed(StageDir(Path(arguments.training_script_args[-1])), error.failures)
        sys.exit(1)
