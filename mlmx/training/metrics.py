"""The lines of ``metrics.jsonl``, which W&B and the terminal only repeat."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from mlmx.stage import StageDir, write_atomically
from mlmx.training.budget import Axis, Budget, Spent
from mlmx.training.parallel import ProcessGroup
from mlmx.training.progress import Progress
from mlmx.training.stopwatch import Stopwatch, peak_memory_bytes

Record = dict[str, Any]


class MetricsLog:
    """Writes what a training costs and how well it does; in the main process only.

    A line has the costs so far (``step``, ``tokens``, ``supervised_tokens``, ``seconds``, ``flops``), and since the line before it
    ``tokens_per_second``, ``model_flops_utilisation`` (FLOPs per second as a part of what the devices can do) and the shares
    of the time, ``time/data|forward|backward|optimizer|other``; then what the trainer adds of its last step. ``null`` stands for
    what is not known.

    Args:
        stage: whose ``metrics.jsonl``; lines after ``start`` are cut off, since those steps will be taken again.
        budget: when the training ends.
        start: the costs before the first line.
        processes: who trains together.
        watch: takes the time.
        on_log: called with each line.
    """

    def __init__(
        self,
        stage: StageDir,
        budget: Budget,
        start: Spent,
        processes: ProcessGroup,
        watch: Stopwatch,
        on_log: Callable[[Record], None] | None,
    ) -> None:
        self._path = stage.metrics_path
        self._processes = processes
        self._watch = watch
        self._on_log = on_log
        self._before = start
        self._progress = Progress(stage.path.name, budget=budget, start=start, enabled=processes.is_main)
        if processes.is_main and self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= start.steps]
            write_atomically(self._path, "".join(f"{line}\n" for line in kept))

    def write(self, spent: Spent, record: Mapping[str, Any]) -> None:
        """Write a line.

        Args:
            spent: the costs so far.
            record: what else there is to say of the last step, its ``loss`` first.
        """
        costs = spent.to_json()
        line = {
            "step": costs.pop("steps"),
            "loss": record["loss"],
            **costs,
            "flops": spent.flops or None,
            "tokens_per_second": round(self._rate("tokens", spent), 1),
            "model_flops_utilisation": self._utilisation(spent),
            "peak_memory_bytes": peak_memory_bytes(self._processes.device),
            **self._watch.shares(),
            **record,
        }
        self._before = spent
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._progress.show(spent, line)
        if self._on_log is not None:
            self._on_log(line)

    def _rate(self, axis: Axis, spent: Spent) -> float:
        return (spent.on(axis) - self._before.on(axis)) / max(spent.seconds - self._before.seconds, 1e-9)

    def _utilisation(self, spent: Spent) -> float | None:
        if self._processes.peak_flops is None or not spent.flops:
            return None
        return round(self._rate("flops", spent) / (self._processes.peak_flops * self._processes.size), 4)
