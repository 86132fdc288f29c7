"""The trainer: one loop for every objective, in pretraining and in fine-tuning.

It knows *when* (batches, accumulation, ranks, optimiser, schedule, checkpoints, logs) and nothing of *what*: an objective gives
sums of losses, and the trainer divides them by counts that were totalled before the forward pass.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
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
from mlmx.models.encoder import set_dropout
from mlmx.objectives.objective import Objective
from mlmx.stage import StageDir, write_atomically
from mlmx.training.checkpoint import load_checkpoint, save_checkpoint
from mlmx.training.loader import StepBatches
from mlmx.training.optim import Schedule, adamw, learning_rate_factor
from mlmx.training.parallel import ProcessGroup
from mlmx.training.progress import Progress
from mlmx.training.totals import add_up, means_of, numbers_of, weighted_loss

log = logging.getLogger(__name__)

Record = dict[str, Any]


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
        batch_tokens: Positive | None,
        batch_examples: Positive | None,
        micro_batch_tokens: Positive | None,
        max_length: Positive | None,
        overlong: Literal["split", "truncate"] | None,
        learning_rate: PositiveFloat,
        schedule: Schedule,
        warmup_ratio: Ratio,
        decay_ratio: Ratio | None,
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

        Args:
            max_steps: optimiser steps; or
            max_epochs: how often the data is seen.
            batch_tokens: most tokens of a global batch, over all processes; or
            batch_examples: rows of a global batch.
            micro_batch_tokens: most tokens of one forward pass of one process; null: the process' whole share.
            max_length: tokens of the longest row of a corpus, special ones included; null where a task makes its own rows.
            overlong: what happens to longer texts of a corpus; null where a task makes its own rows.
            learning_rate: at its peak.
            schedule: of the learning rate, see ``mlmx.training.optim``.
            warmup_ratio: part of the steps in which the learning rate rises.
            decay_ratio: part of the steps in which it falls; for ``wsd`` only, otherwise null.
            weight_decay: AdamW's; not for biases and norms.
            betas: AdamW's.
            eps: AdamW's.
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
        problems = []
        if (max_steps is None) == (max_epochs is None):
            problems.append(Problem("trainer.max_steps", "set either max_steps or max_epochs, and leave the other null."))
        if (batch_tokens is None) == (batch_examples is None):
            problems.append(Problem("trainer.batch_tokens", "set either batch_tokens or batch_examples, and leave the other null."))
        if (schedule == "wsd") != (decay_ratio is not None):
            problems.append(Problem("trainer.decay_ratio", "is for schedule=wsd, which needs it, and null for the others."))
        if problems:
            raise UserError(problems)
        self.max_steps, self.max_epochs = max_steps, max_epochs
        self.batch_tokens, self.batch_examples, self.micro_batch_tokens = batch_tokens, batch_examples, micro_batch_tokens
        self.max_length, self.overlong = max_length, overlong
        self.learning_rate, self.schedule, self.warmup_ratio, self.decay_ratio = learning_rate, schedule, warmup_ratio, decay_ratio
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
        progress = Progress(stage.path.name, num_steps=run.plan.num_steps, start=run.state.step, enabled=processes.is_main)
        batches = run.batches.load(run.state.step, num_workers=self.num_workers)
        began = time.monotonic() - run.state.seconds
        for step, micro_batches in enumerate(batches, start=run.state.step):
            record, stop = self._step(run, step, micro_batches)
            run.state.seconds = time.monotonic() - began
            last = run.state.step == run.plan.num_steps
            if processes.is_main and (run.state.step == 1 or run.state.step % self.log_every_steps == 0 or last):
                self._log(run, record, stage, progress, on_log)
            due = self.checkpoint_every_steps is not None and run.state.step % self.checkpoint_every_steps == 0
            if stop or (due and not last) or (last and self.checkpoint_every_steps is not None):
                self._checkpoint(run, stage)
            if stop and not last:
                raise Stopped(f"stopped after step {run.state.step} of {run.plan.num_steps}, as asked; a checkpoint is written")
        objective.eval()
        return run.result()

    def _start(self, objective: Objective, rows: RowDataset, seed: int, processes: ProcessGroup) -> _Run:
        longest, limit = int(rows.lengths.max(initial=0)), objective.encoder.max_length
        if longest > limit:
            raise user_error("trainer.max_length", f"rows have up to {longest} tokens; the encoder takes at most {limit}.")
        plan = BatchPlan(
            rows.lengths,
            seed=seed,
            batch_tokens=self.batch_tokens,
            batch_examples=self.batch_examples,
            max_steps=self.max_steps,
            epochs=self.max_epochs,
            weights=getattr(rows, "weights", None),
        )
        if self.dropout is not None:
            set_dropout(objective, self.dropout)
        objective.to(processes.device).train()
        processes.broadcast_module(objective)
        return _Run(
            objective=objective,
            optimizer=adamw(
                objective,
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                betas=self.betas,
                eps=self.eps,
            ),
            plan=plan,
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
        )

    def _step(self, run: _Run, step: int, micro_batches: list[Batch]) -> tuple[Record, bool]:
        processes, objective = run.processes, run.objective
        # 1. What the terms will be divided by: known before forward, totalled over micro-batches and ranks.
        counts = add_up(processes.gather(add_up(batch.counts for batch in micro_batches)))
        if objective.batch_coupled and len(micro_batches) > 1:
            message = (
                "the objective compares the examples of a batch, so a batch cannot be cut up: raise it, or make the batch smaller."
            )
            raise user_error("trainer.micro_batch_tokens", message)
        # 2. Forward and backward, one micro-batch at a time.
        run.optimizer.zero_grad(set_to_none=True)
        numbers = []
        for index, batch in enumerate(micro_batches):
            _seed_dropout(run.seed, step, index, processes.rank)
            with self._autocast(processes.device):
                output = objective(batch.to(processes.device))
            loss = weighted_loss(output.terms, objective.weights, counts)
            loss.backward()  # type: ignore[no-untyped-call]
            numbers.append(numbers_of(output, loss, batch))
        # 3. Sums over ranks: of gradients, which are then those of the global mean, and of what is logged.
        processes.sum_gradients(objective.parameters())
        norm = float(nn.utils.clip_grad_norm_(objective.parameters(), self.max_grad_norm or math.inf))
        reports = processes.gather((numbers, processes.stop_requested))
        _check_finite(run, step, [numbers for numbers, _ in reports], norm)
        # 4. The step itself.
        learning_rate = self._learning_rate(step, run.plan.num_steps)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate
        run.optimizer.step()
        objective.after_step(step)
        totals = add_up(add_up(numbers) for numbers, _ in reports)
        run.state.advance(tokens=int(totals["tokens"]), supervised_tokens=int(sum(counts.values())), loss=totals["loss"])
        record = {"loss": totals["loss"], **means_of(totals, counts), "learning_rate": learning_rate, "grad_norm": norm}
        return record, any(stop for _, stop in reports)

    def _learning_rate(self, step: int, num_steps: int) -> float:
        return self.learning_rate * learning_rate_factor(
            step,
            schedule=self.schedule,
            num_steps=num_steps,
            warmup_steps=round(self.warmup_ratio * num_steps),
            decay_ratio=self.decay_ratio,
        )

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    def _log(self, run: _Run, record: Record, stage: StageDir, progress: Progress, on_log: Callable[[Record], None] | None) -> None:
        state = run.state
        since = state.logged_seconds, state.logged_tokens
        speed = (state.tokens - since[1]) / max(state.seconds - since[0], 1e-9)
        state.logged_seconds, state.logged_tokens = state.seconds, state.tokens
        line = {
            "step": state.step,
            "loss": record.pop("loss"),
            "tokens": state.tokens,
            "supervised_tokens": state.supervised_tokens,
            "seconds": round(state.seconds, 3),
            "tokens_per_second": round(speed, 1),
            "epoch": run.plan.epoch_of(state.step - 1),
            **record,
        }
        with stage.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        progress.show(line)
        if on_log is not None:
            on_log(line)

    def _checkpoint(self, run: _Run, stage: StageDir) -> None:
        if run.processes.is_main:
            save_checkpoint(
                stage.checkpoints_dir,
                run.state.step,
                run.objective,
                run.optimizer,
                run.state.to_json(),
                keep=self.keep_checkpoints,
            )
        # Nobody runs on towards the next checkpoint, or to the exit, before this one is whole.
        run.processes.barrier()

    def _resume(self, run: _Run, stage: StageDir) -> None:
        state = load_checkpoint(stage.checkpoints_dir, run.objective, run.optimizer)
        if state is not None:
            run.state = _State(**state)
            if len(set(run.processes.gather(run.state.step))) > 1:
                raise RuntimeError("the ranks found different checkpoints; is the stage directory on a shared disk?")
            log.warning("goes on after step %d of %d", run.state.step, run.plan.num_steps)
        if run.processes.is_main:
            _cut_metrics(stage, run.state.step)


@dataclass(slots=True)
class _State:
    # What a checkpoint holds beside tensors.
    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    final_loss: float | None = None
    logged_seconds: float = 0.0
    logged_tokens: int = 0

    def advance(self, *, tokens: int, supervised_tokens: int, loss: float) -> None:
        self.step += 1
        self.tokens += tokens
        self.supervised_tokens += supervised_tokens
        self.final_loss = loss

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True, kw_only=True)
class _Run:
    # What belongs to one call of fit.
    objective: Objective
    optimizer: Optimizer
    plan: BatchPlan
    batches: StepBatches
    seed: int
    processes: ProcessGroup
    state: _State = field(default_factory=_State)

    def result(self) -> dict[str, Any]:
        state = self.state
        return {
            "steps": state.step,
            "tokens": state.tokens,
            "supervised_tokens": state.supervised_tokens,
            "seconds": round(state.seconds, 3),
            "final_loss": state.final_loss,
            "num_parameters": sum(parameter.numel() for parameter in self.objective.parameters()),
            "num_encoder_parameters": sum(parameter.numel() for parameter in self.objective.encoder.base.parameters()),
            "num_rows": len(self.batches.rows),
            "num_epochs": self.plan.epoch_of(state.step - 1) + 1 if state.step else 0,
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


def _cut_metrics(stage: StageDir, step: int) -> None:
    # Steps after the checkpoint will be taken, and logged, again.
    if stage.metrics_path.exists():
        lines = stage.metrics_path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_atomically(stage.metrics_path, "".join(f"{line}\n" for line in kept))
