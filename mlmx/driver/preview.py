"""Showing what an objective does to examples, before anything is trained."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlmx.driver.command import attached
from mlmx.driver.contents import source_hash
from mlmx.driver.directories import place
from mlmx.driver.execute import check, run_stages
from mlmx.driver.stages import stages_of
from mlmx.errors import user_error
from mlmx.stage import StageDir

_PREVIEW = "mlmx.training.preview"


def preview(config: Mapping[str, Any], num_examples: int) -> None:
    """Print examples as the first pretraining of a chain sees them; the corpus is prepared and annotated if need be.

    Args:
        config: the frozen config.
        num_examples: how many to print.

    Raises:
        UserError: if the chain has no pretraining, or a setting is wrong.
    """
    stages = stages_of({**config, "task": {}}, trained=False)
    first = next((stage for stage in stages if stage.kind == "pretrain"), None)
    if first is None:
        raise user_error("chain", "there is no pretraining to preview.")
    placed = place(stages[: stages.index(first) + 1], Path(config["outputs"]))
    check(placed, config, fresh=True)
    run_stages(placed[:-1])
    record = placed[-1].config(source_hash())
    # The stage itself is not begun: its config lies elsewhere and names its parents by their full paths.
    record["parents"] = {role: str(parent.directory.path.absolute()) for role, parent in placed[-1].parents.items()}
    with tempfile.TemporaryDirectory(prefix="mlmx-preview-") as folder:
        StageDir(folder).write_config(record)
        command, environment = attached(_PREVIEW, folder, str(num_examples))
        done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
