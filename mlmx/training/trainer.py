"""The trainer: one loop for every objective, in pretraining and in fine-tuning.

It knows *when* (batches, accumulation, ranks, optimiser, schedule, checkpoints, logs) and nothing of *what*: an objective gives
sums of losses, and the trainer divides them by counts that were totalled before the forward pass.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from mlmx import keyed
from mlmx.build import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Ratio
from mlmx.data.batch import Batch
from mlmx.data.plan import BatchPlan
from mlmx.data.rows import RowDataset
from mlmx.errors import Problem, UserError, user_error
from mlmx.models.encoder import Encoder, set_dropout
from mlmx.objectives.objective import Objective
from mlmx.stage import StageDir
from mlmx.training.budget import Budget, Spent
from mlmx.training.checkpoint import load_checkpoint, save_checkpoint
from mlmx.training.loader import StepBatches
from mlmx.training.metrics import MetricsLog, Record
from mlmx.training.optim import Algorithm, optimizer_for, set_learning_rate
from mlmx.training.parallel import ProcessGroup
from mlmx.training.schedule import LearningRate, Schedule
from mlmx.training.stopwatch import Stopwatch, peak_memory_bytes
from mlmx.training.totals import Work, add_up, means_of, numbers_of, read, weighted_loss

log = logging.getLogger(__name__)

_BUDGETS = ("max_steps", "max_epochs", "max_tokens", "max_supervised_tokens", "max_seconds", "max_flops")
_CUT_UP = "the objective compares the examples of a batch, so a batch cannot be cut up: raise it, or make the batch smaller."


class NonFiniteError(RuntimeError):
    """A loss or a gradient that is not finite; raised before the optimiser step."""


class Stopped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The training was asked to stop and has written a checkpoint."""


class Trainer:
    """Trains an objective on rows. Every parameter of the constructor is a setting."""

    def __init__(
        self,
        *,
        max_steps: NonNegative | None,
        max_epochs: Positive | None,
        max_tokens: Positive | None,
        max_supervised_tokens: Positive | None,
        max_seconds: PositiveFloat | None,
        max_flops: PositiveFloat | None,
        batch_tokens: Positive | None,
        batch_examples: Positive | None,
        batch_warmup_tokens: Positive | None,
        batch_warmup_start_ratio: Ratio | None,
        micro_batch_tokens: Positive | None,
        max_length: Positive | None,
        overlong: Literal["split", "truncate"] | None,
        learning_rate: PositiveFloat,
        schedule: Schedule,
        warmup_ratio: Ratio | None,
        warmup_steps: NonNegative | None,
        warmup_tokens: NonNegative | None,
        decay_ratio: Ratio | None,
        layer_decay: Ratio | None,
        optimizer: Algorithm,
        weight_decay: NonNegativeFloat,
        betas: tuple[Ratio, Ratio],
        eps: PositiveFloat,
        max_grad_norm: PositiveFloat | None,
        dropout: Ratio | None,
        precision: Literal["float32", "bfloat16"],
        log_every_steps: Positive,
        checkpoint_every_steps: Positive | None,
        keep_checkpoints: Positive,
        num_workers: NonNegative,
    ) -> None:
        """Describe the training.

        A training ends with the step that reaches its budget; exactly one is given, and all are logged.

        Args:
            max_steps: budget in optimiser steps; or
            max_epochs: in passes over the data; or
            max_tokens: in tokens, special ones included; or
            max_supervised_tokens: in predictions that the loss sums over, of all its terms; or
            max_seconds: in seconds of training, by the main process' clock, whatever interrupts it; or
            max_flops: in model FLOPs, see ``mlmx.models.flops``.
            batch_tokens: most tokens of a global batch, over all processes; or
            batch_examples: rows of a global batch.
            batch_warmup_tokens: tokens over which the global batch grows linearly to its full size; null: it has it from the start.
            batch_warmup_start_ratio: part of the full size that the first batch has; null without ``batch_warmup_tokens``.
            micro_batch_tokens: most tokens of one forward pass of one process; null: the process' whole share.
            max_length: tokens of the longest row of a corpus, special ones included; null where a task makes its own rows.
            overlong: what happens to longer texts of a corpus; null where a task makes its own rows.
            learning_rate: at its peak.
            schedule: of the learning rate over the budget, see ``mlmx.training.schedule``.
            warmup_ratio: part of the budget in which the learning rate rises; or
            warmup_steps: steps in which it does; or
            warmup_tokens: tokens in which it does.
            decay_ratio: part of the budget in which it falls; for ``wsd`` only, otherwise null.
            layer_decay: in [0, 1], by which the learning rate falls from each layer of the encoder to the one below: heads have the
                full one, embeddings the lowest; 0: only heads learn; null: all have the same.
            optimizer: ``adamw``, or ``stable_adamw``, which shortens the steps of a tensor whose gradients have suddenly grown
                (Wortsman et al. 2023); see ``mlmx.training.optim``.
            weight_decay: part of the learning rate that weights lose in a step; not biases and norms.
            betas: the optimiser's, in [0, 1].
            eps: the optimiser's.
            max_grad_norm: gradients are scaled down to this norm; null: never.
            dropout: every dropout of the objective; null: as the model has it.
            precision: of the forward pass; weights and optimiser are float32.
            log_every_steps: steps between lines of ``metrics.jsonl``.
            checkpoint_every_steps: null: none but when stopped.
            keep_checkpoints: how many stay.
            num_workers: processes that prepare batches; 0: none.

        Raises:
            UserError: if settings contradict each other.
        """
        budgets = (max_steps, max_epochs, max_tokens, max_supervised_tokens, max_seconds, max_flops)
        warmups = (warmup_ratio, warmup_steps, warmup_tokens)
        problems = []
        if _num_given(budgets) != 1:
            problems.append(Problem("trainer.max_steps", f"set exactly one of {', '.join(_BUDGETS)}, and leave the others null."))
        if (batch_tokens is None) == (batch_examples is None):
            problems.append(Problem("trainer.batch_tokens", "set either batch_tokens or batch_examples, and leave the other null."))
        if (batch_warmup_tokens is None) != (batch_warmup_start_ratio is None):
            message = "set both batch_warmup_tokens and batch_warmup_start_ratio, or leave both null."
            problems.append(Problem("trainer.batch_warmup_tokens", message))
        if _num_given(warmups) != 1:
            message = "set exactly one of warmup_ratio, warmup_steps, warmup_tokens, and leave the others null."
            problems.append(Problem("trainer.warmup_ratio", message))
        for unit, warmup, limit in (("steps", warmup_steps, max_steps), ("tokens", warmup_tokens, max_tokens)):
            if warmup and limit and warmup >= limit:
                problems.append(Problem(f"trainer.warmup_{unit}", f"{warmup} is not below max_{unit}={limit}."))
        if (schedule == "wsd") != (decay_ratio is not None):
            problems.append(Problem("trainer.decay_ratio", "is for schedule=wsd, which needs it, and null for the others."))
        if problems:
            raise UserError(problems)
        self.max_steps, self.max_epochs, self.max_tokens = max_steps, max_epochs, max_tokens
        self.max_supervised_tokens, self.max_seconds, self.max_flops = max_supervised_tokens, max_seconds, max_flops
        self.batch_tokens, self.batch_examples, self.micro_batch_tokens = batch_tokens, batch_examples, micro_batch_tokens
        self.batch_warmup_tokens, self.batch_warmup_start_ratio = batch_warmup_tokens, batch_warmup_start_ratio
        self.max_length, self.overlong = max_length, overlong
        self.learning_rate = LearningRate(
            peak=learning_rate,
            schedule=schedule,
            warmup_ratio=warmup_ratio,
            warmup_steps=warmup_steps,
            warmup_tokens=warmup_tokens,
            decay_ratio=decay_ratio,
        )
        self.layer_decay, self.optimizer = layer_decay, optimizer
        self.weight_decay, self.betas, self.eps, self.max_grad_norm = weight_decay, betas, eps, max_grad_norm
        self.dropout, self.precision = dropout, precision
        self.log_every_steps, self.num_workers = log_every_steps, num_workers
        self.checkpoint_every_steps, self.keep_checkpoints = checkpoint_every_steps, keep_checkpoints

    def fit(
        self,
        objective: Objective,
        rows: RowDataset,
        stage: StageDir,
        *,
        seed: int,
        processes: ProcessGroup,
        on_log: Callable[[Record], None] | None = None,
    ) -> dict[str, Any]:
        """Train, from the last checkpoint if there is one.

        Args:
            objective: what is trained; ends up on the device of ``processes``, in evaluation mode.
            rows: the data.
            stage: where checkpoints and metrics go.
            seed: of the batches and of dropout.
            processes: who trains together.
            on_log: called with each logged step, in the main process.

        Returns:
            What ``result.json`` holds.

        Raises:
            UserError: if rows are too long for the encoder, or the plan has no steps to take.
            NonFiniteError: before the step whose loss or gradient is not finite.
            Stopped: after the checkpoint that a stop request asked for.
        """
        run = self._start(objective, rows, seed, processes)
        self._resume(run, stage)
        metrics = MetricsLog(stage, run.budget, run.spent, processes, run.watch, on_log)
        batches = run.batches.load(run.spent.steps, num_workers=self.num_workers)
        run.began = time.monotonic() - run.spent.seconds
        while not run.budget.is_spent(run.spent):
            record, stop = self._step(run, batches)
            step, last = run.spent.steps, run.budget.is_spent(run.spent)
            if processes.is_main and (step == 1 or step % self.log_every_steps == 0 or last):
                metrics.write(run.spent, {**record, "epoch": run.plan.epoch_of(step - 1)})
            due = self.checkpoint_every_steps is not None and step % self.checkpoint_every_steps == 0
            if stop or (due and not last) or (last and self.checkpoint_every_steps is not None):
                self._checkpoint(run, stage)
            if stop and not last:
                raise Stopped(f"stopped after {run.budget.told(run.spent)}, as asked; a checkpoint is written")
            run.watch.lap("other")
        objective.eval()
        return run.result()

    def _start(self, objective: Objective, rows: RowDataset, seed: int, processes: ProcessGroup) -> _Run:
        longest, limit = int(rows.lengths.max(initial=0)), objective.encoder.max_length
        if longest > limit:
            raise user_error("trainer.max_length", f"rows have up to {longest} tokens; the encoder takes at most {limit}.")
        if self.max_flops is not None and objective.encoder.layers is None:
            raise user_error("trainer.max_flops", "the FLOPs of this model are not known: its structure does not show its layers.")
        plan = BatchPlan(
            rows.lengths,
            seed=seed,
            batch_tokens=self.batch_tokens,
            batch_examples=self.batch_examples,
            max_steps=self.max_steps,
            epochs=self.max_epochs,
            max_tokens=self.max_tokens,
            batch_warmup_tokens=self.batch_warmup_tokens,
            batch_warmup_start_ratio=self.batch_warmup_start_ratio,
            weights=getattr(rows, "weights", None),
        )
        if self.dropout is not None:
            set_dropout(objective, self.dropout)
        objective.to(processes.device).train()
        processes.broadcast_module(objective)
        return _Run(
            objective=objective,
            optimizer=optimizer_for(
                objective,
                algorithm=self.optimizer,
                learning_rate=self.learning_rate.peak,
                weight_decay=self.weight_decay,
                betas=self.betas,
                eps=self.eps,
                scales=self._scales(objective.encoder),
            ),
            plan=plan,
            budget=Budget.of(
                plan.num_steps,
                {"supervised_tokens": self.max_supervised_tokens, "seconds": self.max_seconds, "flops": self.max_flops},
            ),
            batches=StepBatches(
                plan=plan,
                rows=rows,
                collator=objective.collator(),
                seed=seed,
                micro_batch_tokens=self.micro_batch_tokens,
                rank=processes.rank,
                size=processes.size,
            ),
            seed=seed,
            processes=processes,
            watch=Stopwatch(processes.device, enabled=processes.is_main),
        )

    def _step(self, run: _Run, batches: Iterator[list[Batch]]) -> tuple[Record, bool]:
        processes, objective, before = run.processes, run.objective, run.spent
        micro_batches = next(batches)
        # 1. What the terms will be divided by: known before forward, totalled over micro-batches and ranks.
        work = Work.total(processes.gather(Work.of(objective, micro_batches)))
        if objective.batch_coupled and len(micro_batches) > 1:
            raise user_error("trainer.micro_batch_tokens", _CUT_UP)
        run.watch.lap("data")
        # 2. Forward and backward, one micro-batch at a time.
        run.optimizer.zero_grad(set_to_none=True)
        numbers = []
        for index, batch in enumerate(micro_batches):
            _seed_dropout(run.seed, before.steps, index, processes.rank)
            with self._autocast(processes.device):
                output = objective(replace(batch, progress=run.budget.progress(before)).to(processes.device))
            loss = weighted_loss(output.terms, objective.weights, work.counts)
            run.watch.lap("forward")
            loss.backward()  # type: ignore[no-untyped-call]
            numbers.append(numbers_of(output, loss))
            run.watch.lap("backward")
        # 3. Sums over ranks: of gradients, which are then those of the global mean, and of what is logged. Here, once per step,
        # the host waits for the device: no step may be taken before its loss and gradient are known to be finite.
        processes.sum_gradients(objective.parameters())
        values, norm = read(numbers, nn.utils.clip_grad_norm_(objective.parameters(), self.max_grad_norm or math.inf))
        reports = processes.gather((values, processes.stop_requested, time.monotonic() - run.began))
        _check_finite(run, before.steps, [values for values, _, _ in reports], norm)
        # 4. The step itself. The time is the main process', so that all ranks see the same part of the budget spent.
        run.spent = before.after_step(
            tokens=work.tokens, supervised_tokens=work.supervised_tokens, flops=work.flops, seconds=reports[0][2]
        )
        learning_rate, run.warmed = self.learning_rate.at(run.budget, before, run.spent, run.warmed)
        set_learning_rate(run.optimizer, learning_rate)
        run.optimizer.step()
        objective.after_step(before.steps)
        run.watch.lap("optimizer")
        totals = add_up(add_up(values) for values, _, _ in reports)
        run.final_loss = totals["loss"]
        record = {"loss": totals["loss"], **means_of(totals, work.counts), "learning_rate": learning_rate, "grad_norm": norm}
        return record, any(stop for _, stop, _ in reports)

    def _scales(self, encoder: Encoder) -> dict[nn.Parameter, float]:
        if self.layer_decay is None:
            return {}
        return {parameter: self.layer_decay ** (encoder.num_layers + 1 - depth) for parameter, depth in encoder.depths().items()}

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    def _checkpoint(self, run: _Run, stage: StageDir) -> None:
        if run.processes.is_main:
            state = {"spent": asdict(run.spent), "warmed": run.warmed, "final_loss": run.final_loss}
            save_checkpoint(stage.checkpoints_dir, run.spent.steps, run.objective, run.optimizer, state, keep=self.keep_checkpoints)
        # Nobody runs on towards the next checkpoint, or to the exit, before this one is whole.
        run.processes.barrier()

    def _resume(self, run: _Run, stage: StageDir) -> None:
        state = load_checkpoint(stage.checkpoints_dir, run.objective, run.optimizer)
        if state is not None:
            run.spent = Spent(**state["spent"])
            run.warmed, run.final_loss = state["warmed"], state["final_loss"]
        if len(set(run.processes.gather(run.spent.steps))) > 1:
            raise RuntimeError("the ranks found different checkpoints; is the stage directory on a shared disk?")
        if state is not None:
            log.warning("goes on after %s", run.budget.told(run.spent))


@dataclass(slots=True, kw_only=True)
class _Run:
    # What belongs to one call of fit.
    objective: Objective
    optimizer: Optimizer
    plan: BatchPlan
    budget: Budget
    batches: StepBatches
    seed: int
    processes: ProcessGroup
    watch: Stopwatch
    spent: Spent = field(default_factory=Spent)
    warmed: float = 0  # how much of the budget the warm-up has taken
    final_loss: float | None = None
    began: float = 0.0

    def result(self) -> dict[str, Any]:
        steps = self.spent.steps
        return {
            **self.spent.to_json(),
            "flops": self.spent.flops or None,
            "peak_memory_bytes": peak_memory_bytes(self.processes.device),
            "final_loss": self.final_loss,
            "num_parameters": sum(parameter.numel() for parameter in self.objective.parameters()),
            "num_encoder_parameters": sum(parameter.numel() for parameter in self.objective.encoder.base.parameters()),
            "num_rows": len(self.batches.rows),
            "num_epochs": self.plan.epoch_of(steps - 1) + 1 if steps else 0,
            "num_processes": self.processes.size,
        }


def _check_finite(run: _Run, step: int, numbers: list[list[dict[str, float]]], norm: float) -> None:
    # Every rank has everybody's numbers, so all of them stop.
    for rank, of_rank in enumerate(numbers):
        for index, of_micro_batch in enumerate(of_rank):
            if not math.isfinite(of_micro_batch["loss"]):
                rows = run.batches.row_ids(step, rank, index)
                raise NonFiniteError(f"the loss of step {step + 1} is not finite, on rows {_listed(rows)}")
    if not math.isfinite(norm):
        rows = sorted(run.plan.rows_of(step)[0].tolist())
        raise NonFiniteError(f"the gradient of step {step + 1} is not finite, on rows {_listed(rows)}")


def _seed_dropout(seed: int, step: int, micro_batch: int, rank: int) -> None:
    keys = np.array([seed], np.int64)
    for value in (keyed.stream("dropout"), step, micro_batch, rank):
        keys = keyed.fold(keys, value)
    torch.manual_seed(int(keys[0]))


def _listed(rows: list[int], at_most: int = 20) -> str:
    return ", ".join(map(str, rows[:at_most])) + (f" ... ({len(rows)} in all)" if len(rows) > at_most else "")


def _num_given(settings: tuple[float | None, ...]) -> int:
    return sum(setting is not None for setting in settings)
