"""The loop of one training: the step, what is read of it, checkpoints, and going on from one."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from mlmx import keyed
from mlmx.data.batch import Batch
from mlmx.data.plan import BatchPlan
from mlmx.errors import user_error
from mlmx.objectives.objective import Objective
from mlmx.stage import StageDir
from mlmx.training.budget import Budget, Spent
from mlmx.training.checkpoint import CheckpointWriter, Snapshot, load_checkpoint, load_weights
from mlmx.training.loader import StepBatches
from mlmx.training.metrics import MetricsLog
from mlmx.training.optim import set_learning_rate, step_unless
from mlmx.training.parallel import ProcessGroup
from mlmx.training.shard import whole
from mlmx.training.stopwatch import Stopwatch, peak_memory_bytes
from mlmx.training.totals import Work, means_of, sums_of, weighted_loss
from mlmx.training.validation import validate

if TYPE_CHECKING:
    from mlmx.training.trainer import Trainer

log = logging.getLogger(__name__)

# What a checkpoint holds of a loop, beside the costs.
_SAVED = ("warmed", "final_loss", "last_validation", "best_loss", "best_step", "skipped_steps")


class NonFiniteError(RuntimeError):
    """A loss or a gradient that is not finite; the step it belongs to is not taken."""


class Stopped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The training was asked to stop and has written a checkpoint."""


@dataclass(frozen=True, slots=True)
class _Taken:
    # A step whose numbers are on their way from the device.
    spent: Spent
    learning_rate: float
    work: Work
    names: list[str]
    values: Tensor  # 0 or 1: not finite; the gradient's norm; what `names` says
    copied: torch.cuda.Event | None
    logged: bool


@dataclass(slots=True, kw_only=True)
class Loop:
    """One call of ``Trainer.fit``: what it holds and does.

    Attributes:
        settings: the trainer.
        objective: what is trained, on the device.
        optimizer: over its parameters.
        plan: the global batches.
        budget: when the training ends.
        batches: of this process.
        held_out: the batch of this process to validate on, if there is one.
        stage: where checkpoints and metrics go.
        seed: of dropout.
        processes: who trains together.
        watch: takes the time.
        spent: the costs so far.
        warmed: how much of the budget the warm-up has taken.
        final_loss: of the last step that was read.
        last_validation: the loss of the last validation.
        best_loss: the lowest of them.
        best_step: when that was.
        skipped_steps: steps that were not taken since they were not finite.
    """

    settings: Trainer
    objective: Objective
    optimizer: Optimizer
    plan: BatchPlan
    budget: Budget
    batches: StepBatches
    held_out: StepBatches | None
    stage: StageDir
    seed: int
    processes: ProcessGroup
    watch: Stopwatch
    spent: Spent = field(default_factory=Spent)
    warmed: float = 0
    final_loss: float | None = None
    last_validation: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    skipped_steps: int = 0
    _metrics: MetricsLog = field(init=False)
    _writer: CheckpointWriter = field(init=False)
    _loaded: Iterator[list[Batch]] = field(init=False)
    _bad: Tensor = field(init=False)
    _unread: _Taken | None = None
    _began: float = 0.0
    _saved_seconds: float = 0.0
    _told_of_nothing: bool = False

    def run(self, metrics: MetricsLog) -> None:
        """Train to the end of the budget, from the last checkpoint if there is one."""
        self._metrics = metrics
        self._writer = CheckpointWriter(self.stage.checkpoints_dir, keep=self.settings.keep_checkpoints)
        self._bad = torch.zeros((), device=self.processes.device)
        self._load()
        self._began = time.monotonic() - self.spent.seconds
        self._saved_seconds = self.spent.seconds
        while not self.budget.is_spent(self.spent):
            stop = self._step()
            last = self.budget.is_spent(self.spent)
            validation, is_best = self._validation(last)
            if validation or not self.processes.asynchronous:
                self._read(validation)
            if stop or is_best or self._checkpoint_due(last):
                self._checkpoint()
            if stop and not last:
                self._writer.wait()
                self.processes.barrier()
                raise Stopped(f"stopped after {self.budget.told(self.spent)}, as asked; a checkpoint is written")
            self._writer.check()
            self.watch.lap("other")
        self._read()
        # Nobody exits before the last checkpoint is whole.
        self._writer.wait()
        self.processes.barrier()
        if self.settings.export == "best" and self.best_step not in (None, self.spent.steps):
            load_weights(self.stage.checkpoints_dir, self.best_step, self.objective)

    def resume(self) -> None:
        """Load the last valid checkpoint, if there is one."""
        state = load_checkpoint(self.stage.checkpoints_dir, self.objective, self.optimizer)
        if state is not None:
            self.spent = Spent(**state["spent"])
            for name in _SAVED:
                setattr(self, name, state[name])
        if len(set(self.processes.gather(self.spent.steps))) > 1:
            raise RuntimeError("the ranks found different checkpoints; is the stage directory on a shared disk?")
        if state is not None:
            log.warning("goes on after %s", self.budget.told(self.spent))

    def result(self) -> dict[str, Any]:
        """Return what ``result.json`` holds."""
        steps = self.spent.steps
        return {
            **self.spent.to_json(),
            "flops": self.spent.flops or None,
            "peak_memory_bytes": peak_memory_bytes(self.processes.device),
            "final_loss": self.final_loss,
            "validation_loss": self.best_loss if self.settings.export == "best" else self.last_validation,
            "exported_step": self.best_step if self.settings.export == "best" else steps,
            "skipped_steps": self.skipped_steps,
            "num_parameters": sum(parameter.numel() for parameter in self.objective.parameters()),
            "num_encoder_parameters": sum(parameter.numel() for parameter in self.objective.encoder.base.parameters()),
            "num_rows": len(self.batches.rows),
            "num_epochs": self.plan.epoch_of(steps - 1) + 1 if steps else 0,
            "num_processes": self.processes.size,
        }

    def _step(self) -> bool:
        # Returns whether somebody asked to stop.
        before = self.spent
        # 1. What the terms will be divided by: known before forward, totalled over micro-batches and ranks.
        micro_batches = next(self._loaded)
        work = Work.total(Work(**told) for told in self.processes.gather(Work.of(self.objective, micro_batches).to_json()))
        self.watch.lap("data")
        if not work.supervised_tokens and not self._told_of_nothing and self.processes.is_main:
            self._told_of_nothing = True
            log.warning("step %d has nothing to predict, so that nothing is learned from it; told once", before.steps + 1)
        # 2. Forward and backward, one micro-batch at a time; in smaller ones where the memory of any process is too small for them.
        while True:
            numbers = self._forward_and_backward(micro_batches, work)
            told = {"fits": numbers is not None, "stop": self.processes.stop_requested, "seconds": time.monotonic() - self._began}
            reports = self.processes.gather(told)
            if numbers is not None and all(report["fits"] for report in reports):
                break
            micro_batches = self._smaller_micro_batches(micro_batches)
        # 3. Sums over ranks: of gradients, which are then those of the global mean, and of what is logged.
        self.processes.sum_gradients(self.objective.parameters())
        norm = whole(nn.utils.get_total_norm([p.grad for p in self.objective.parameters() if p.grad is not None]))
        names, sums = numbers
        sums = self.processes.sum(sums)
        # 4. The step itself, which the device leaves out if loss or gradient are not finite: nobody waits to know. The time is the
        # main process', so that all ranks see the same part of the budget spent.
        bad = 1.0 - (sums[names.index("loss")].isfinite() & norm.isfinite()).float()
        if self.settings.on_nonfinite == "stop":
            self._bad = bad = torch.maximum(bad, self._bad)
        self.spent = before.after_step(
            tokens=work.tokens, supervised_tokens=work.supervised_tokens, flops=work.flops, seconds=reports[0]["seconds"]
        )
        learning_rate, self.warmed = self.settings.learning_rate.at(self.budget, before, self.spent, self.warmed)
        set_learning_rate(self.optimizer, learning_rate)
        step_unless(bad, self.optimizer, norm=norm, max_norm=self.settings.max_grad_norm)
        # 5. Numbers are read when they have come: where a GPU works on this step, those of the step before.
        taken = self._taken(learning_rate, work, names, torch.cat([torch.stack([bad.double(), norm.double()]), sums]))
        self._read()
        self._unread = taken
        self.objective.after_step(before.steps)
        self.watch.lap("optimizer")
        return any(report["stop"] for report in reports)

    def _forward_and_backward(self, micro_batches: list[Batch], work: Work) -> tuple[list[str], Tensor] | None:
        # Returns names and sums of what is logged; None if the memory was too small.
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.before_step()
        progress = self.budget.progress(self.spent)
        numbers = []
        try:
            for index, batch in enumerate(micro_batches):
                _seed_dropout(self.seed, self.spent.steps, index, self.processes.rank)
                batch = replace(batch, progress=progress)
                with self._autocast():
                    output = self.objective(batch.to(self.processes.device))
                loss = weighted_loss(output.terms, self.objective.weights_of(batch), work.counts, counted=batch.counted)
                self.watch.lap("forward")
                loss.backward()  # type: ignore[no-untyped-call]
                numbers.append(sums_of(output, loss, counted=batch.counted))
                self.watch.lap("backward")
        except torch.OutOfMemoryError:
            if self.processes.num_shards == 1 and not self.objective.batch_coupled:
                return None
            # The other processes wait for this one's part of the weights, or of the examples, and cannot be asked.
            setting = "micro_batch_tokens" if not self.objective.batch_coupled else "batch_tokens or batch_examples"
            message = "the memory of the device is too small for micro-batches of this size; make it smaller."
            raise user_error(f"trainer.{setting}", message) from None
        return list(numbers[0]), torch.stack([torch.stack(list(of_one.values())) for of_one in numbers]).sum(0)

    def _smaller_micro_batches(self, micro_batches: list[Batch]) -> list[Batch]:
        # Half as large from here on. The global batches, and so the numbers, stay what they are.
        largest = max(self.processes.gather(max(batch.num_tokens for batch in micro_batches)))
        half = max(min(largest, self.batches.micro_batch_tokens or largest) // 2, int(self.batches.rows.lengths.max()))
        if half >= largest:
            message = f"the memory of the device is too small for micro-batches of {largest} tokens, and they cannot be smaller."
            raise user_error("trainer.micro_batch_tokens", message)
        if self.processes.is_main:
            log.warning("the memory is too small for micro-batches of %d tokens; goes on with micro_batch_tokens=%d", largest, half)
        self.optimizer.zero_grad(set_to_none=True)
        if self.processes.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batches = replace(self.batches, micro_batch_tokens=half)
        if self.held_out is not None:
            self.held_out = replace(self.held_out, micro_batch_tokens=half)
        self._load()
        return next(self._loaded)

    def _load(self) -> None:
        self._loaded = self.batches.load(
            self.spent.steps, num_workers=self.settings.num_workers, pin_memory=self.processes.device.type == "cuda"
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        on = self.settings.precision == "bfloat16"
        return torch.autocast(self.processes.device.type, torch.bfloat16) if on else nullcontext()

    def _taken(self, learning_rate: float, work: Work, names: list[str], values: Tensor) -> _Taken:
        step, copied = self.spent.steps, None
        if self.processes.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        logged = step == 1 or step % self.settings.log_every_steps == 0 or self.budget.is_spent(self.spent)
        return _Taken(self.spent, learning_rate, work, names, values, copied, logged)

    def _read(self, validation: Mapping[str, float] | None = None) -> None:
        # Looks at the numbers of the last step that nobody has looked at yet.
        if self._unread is None:
            return
        taken, self._unread = self._unread, None
        if taken.copied is not None:
            taken.copied.synchronize()
        bad, norm, *sums = taken.values.tolist()
        totals = dict(zip(taken.names, sums, strict=True))
        if bad:
            self._nonfinite(taken.spent.steps - 1, loss=totals["loss"])
        else:
            self.final_loss = totals["loss"]
        if (taken.logged or validation) and self.processes.is_main:
            record = {
                "loss": totals["loss"],
                **means_of(totals, taken.work.counts),
                "learning_rate": taken.learning_rate,
                "grad_norm": norm,
                "packing_efficiency": round(taken.work.tokens / taken.work.positions, 4),
                "skipped_steps": self.skipped_steps,
                "epoch": self.plan.epoch_of(taken.spent.steps - 1),
                **{f"validation/{name}": value for name, value in (validation or {}).items()},
            }
            self._metrics.write(taken.spent, record)

    def _nonfinite(self, step: int, *, loss: float) -> None:
        what = "gradient" if math.isfinite(loss) else "loss"
        if self.settings.on_nonfinite == "skip":
            self.skipped_steps += 1
            if self.processes.is_main:
                log.warning("step %d is skipped, since its %s is not finite; %d so far", step + 1, what, self.skipped_steps)
            return
        rows, folder = self._examine(step, every=what == "gradient"), self.stage.path / "nonfinite"
        listed = _listed(sorted(row for of_rank in self.processes.gather(rows) for row in of_rank))
        raise NonFiniteError(
            f"the {what} of step {step + 1} is not finite, on rows {listed}. The batch is saved in {folder}; the weights are those "
            "before the step. A lower trainer.learning_rate may help, or trainer.on_nonfinite=skip."
        )

    def _examine(self, step: int, *, every: bool) -> list[int]:
        # Finds and saves this process' micro-batches that make the loss not finite, or all of them; returns their rows. The
        # weights are still those before the step, and a batch is a function of its step, so it can be made again.
        rows = []
        for index, batch in enumerate(self.batches[step]):
            _seed_dropout(self.seed, step, index, self.processes.rank)
            with torch.no_grad(), self._autocast():
                output = self.objective(replace(batch, progress=self.budget.progress(self.spent)).to(self.processes.device))
            if batch.counted and (every or not all(bool(term.isfinite()) for term in output.terms.values())):
                folder = self.stage.path / "nonfinite"
                folder.mkdir(exist_ok=True)
                tensors = {**batch.tensors, "keys": batch.keys}
                save_file(tensors, folder / f"step-{step + 1:08d}-rank-{self.processes.rank}-{index}.safetensors")
                rows += self.batches.row_ids(step, index)
        return rows

    def _validation(self, last: bool) -> tuple[dict[str, float], bool]:
        # Returns the numbers, if it is time for some, and whether they are the best so far.
        every = self.settings.validate_every_steps
        if self.held_out is None or not (last or (every is not None and self.spent.steps % every == 0)):
            return {}, False
        numbers = validate(self.objective, self.held_out, self.processes, self._autocast)
        self.last_validation = numbers["loss"]
        is_best = self.best_loss is None or numbers["loss"] < self.best_loss
        if is_best:
            self.best_loss, self.best_step = numbers["loss"], self.spent.steps
        return numbers, is_best

    def _checkpoint_due(self, last: bool) -> bool:
        steps, minutes = self.settings.checkpoint_every_steps, self.settings.checkpoint_every_minutes
        if last:
            return steps is not None or minutes is not None
        late = minutes is not None and self.spent.seconds - self._saved_seconds >= 60.0 * minutes
        return late or (steps is not None and self.spent.steps % steps == 0)

    def _checkpoint(self) -> None:
        self._read()  # what is not finite is never saved
        state = {
            "step": self.spent.steps,
            "spent": asdict(self.spent),
            **{name: getattr(self, name) for name in _SAVED},
        }
        snapshot = Snapshot.of(self.objective, self.optimizer, state, keep=self.processes.is_main)
        if snapshot is not None:
            self._writer.write(snapshot)
        self._saved_seconds = self.spent.seconds


def _seed_dropout(seed: int, step: int, micro_batch: int, rank: int) -> None:
    keys = np.array([seed], np.int64)
    for value in (keyed.stream("dropout"), step, micro_batch, rank):
        keys = keyed.fold(keys, value)
    torch.manual_seed(int(keys[0]))


def _listed(rows: list[int], at_most: int = 20) -> str:
    return ", ".join(map(str, rows[:at_most])) + (f" ... ({len(rows)} in all)" if len(rows) > at_most else "")
