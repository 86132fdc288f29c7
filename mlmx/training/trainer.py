"""The trainer: one loop for every objective, in pretraining and in fine-tuning.

It knows *when* (batches, accumulation, ranks, optimiser, schedule, checkpoints, logs) and nothing of *what*: an objective gives
sums of losses, and the trainer divides them by counts that were totalled before the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mlmx.build import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Ratio
from mlmx.data.plan import BatchPlan
from mlmx.data.rows import RowDataset
from mlmx.errors import Problem, UserError, user_error
from mlmx.models.dropout import set_dropout
from mlmx.models.embedding import add_gradients_by_row
from mlmx.models.encoder import Encoder
from mlmx.objectives.objective import Objective
from mlmx.stage import StageDir
from mlmx.training.budget import Budget
from mlmx.training.loader import StepBatches
from mlmx.training.loop import Loop, NonFiniteError, Stopped
from mlmx.training.metrics import MetricsLog, Record
from mlmx.training.optim import Algorithm, optimizer_for
from mlmx.training.parallel import ProcessGroup
from mlmx.training.schedule import LearningRate, Schedule
from mlmx.training.shard import make_whole
from mlmx.training.stopwatch import Stopwatch
from mlmx.training.validation import HeldOut

__all__ = ["NonFiniteError", "Stopped", "Trainer"]

_BUDGETS = ("max_steps", "max_epochs", "max_tokens", "max_supervised_tokens", "max_seconds", "max_flops")


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
        compile: bool,  # noqa: A002 - its name everywhere
        activation_checkpointing: bool,
        on_nonfinite: Literal["stop", "skip"],
        log_every_steps: Positive,
        validation_rows: NonNegative,
        validate_every_steps: Positive | None,
        export: Literal["last", "best"],
        checkpoint_every_steps: Positive | None,
        checkpoint_every_minutes: PositiveFloat | None,
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
            micro_batch_tokens: most tokens of one forward pass of one process; null: the process' whole share. Objectives that
                compare the examples of a batch always take that, and have ``chunk_tokens``. Where memory is too small for it, the
                training goes on with half of it, and half of that.
            max_length: tokens of the longest row of a corpus, special ones included; null where a task makes its own rows.
            overlong: what happens to longer texts of a corpus; pairs and triplets in one row are always truncated, their longest
                sides first. Null where a task makes its own rows.
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
            compile: whether layers are compiled, see ``mlmx.models.encoder.Encoder.compile_layers``; for long trainings on a GPU.
            activation_checkpointing: whether layers run again in the backward pass, which saves memory and costs a third more time.
            on_nonfinite: what a step is for whose loss or gradient is not finite: ``stop`` ends the training before it and saves
                its batch; ``skip`` leaves weights and optimiser as they are, counts it and goes on.
            log_every_steps: steps between lines of ``metrics.jsonl``.
            validation_rows: rows that are held out of the training, drawn by the seed; their loss, always with the same masks, is
                logged as ``validation/loss`` at the end; 0: none.
            validate_every_steps: steps between validations before that; null: none.
            export: which weights survive: the ``last``, or those with the ``best`` validation loss; their checkpoint is kept too.
            checkpoint_every_steps: and
            checkpoint_every_minutes: whichever comes first; both null: none but when stopped.
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
        if validate_every_steps is not None and not validation_rows:
            problems.append(Problem("trainer.validate_every_steps", "needs validation_rows, which are 0."))
        if export == "best" and validate_every_steps is None:
            problems.append(Problem("trainer.export", "the best of what? Set validate_every_steps and validation_rows."))
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
        self.compile, self.activation_checkpointing = compile, activation_checkpointing
        self.on_nonfinite = on_nonfinite
        self.validation_rows, self.validate_every_steps, self.export = validation_rows, validate_every_steps, export
        self.log_every_steps, self.num_workers = log_every_steps, num_workers
        self.checkpoint_every_steps, self.checkpoint_every_minutes = checkpoint_every_steps, checkpoint_every_minutes
        self.keep_checkpoints = keep_checkpoints

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
        loop = self.prepare(objective, rows, stage, seed=seed, processes=processes)
        loop.resume()
        loop.run(MetricsLog(stage, loop.budget, loop.spent, processes, loop.watch, on_log))
        make_whole(objective)
        objective.eval()
        return loop.result()

    def prepare(self, objective: Objective, rows: RowDataset, stage: StageDir, *, seed: int, processes: ProcessGroup) -> Loop:
        """Return what ``fit`` runs, before its first step."""
        longest, limit = int(rows.lengths.max(initial=0)), objective.encoder.max_length
        if longest > limit:
            raise user_error("trainer.max_length", f"rows have up to {longest} tokens; the encoder takes at most {limit}.")
        if self.max_flops is not None and objective.encoder.layers is None:
            raise user_error("trainer.max_flops", "the FLOPs of this model are not known: its structure does not show its layers.")
        weights: NDArray[np.float64] | None = getattr(rows, "weights", None)
        num_seen = len(rows) if weights is None else int(np.count_nonzero(weights))
        if self.validation_rows >= num_seen:
            raise user_error("trainer.validation_rows", f"{self.validation_rows} of {num_seen} rows would leave none to train on.")
        if objective.batch_coupled:
            self._require_company(rows)
        held_out = HeldOut(len(rows), self.validation_rows, seed=seed, weights=weights)
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
            weights=_without(held_out.rows, weights, len(rows)),
        )
        batches = StepBatches(
            plan=plan,
            rows=rows,
            collator=objective.collator(),
            seed=seed,
            # Examples that are compared with each other run at once; what bounds the memory then is the objective's.
            micro_batch_tokens=None if objective.batch_coupled else self.micro_batch_tokens,
            rank=processes.rank,
            size=processes.size,
        )
        if self.num_workers:
            batches[0]  # What no batch can be made of is told by this process: loader workers would outlive the error.
        if self.dropout is not None:
            set_dropout(objective, self.dropout)
        encoders = [part for part in objective.modules() if isinstance(part, Encoder)]
        for encoder in encoders:
            if self.compile:
                encoder.compile_layers(token_multiple=self._full_micro_batch(rows, processes.size))
            if self.activation_checkpointing:
                encoder.checkpoint_layers()
            if processes.device.type == "cpu" and processes.num_shards == 1:
                add_gradients_by_row(encoder.base.get_input_embeddings())
        processes.place(objective.train(), [layer for encoder in encoders for layer in encoder.layers or ()])
        return Loop(
            settings=self,
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
            batches=batches,
            held_out=replace(batches, plan=held_out, held_out=True) if self.validation_rows else None,
            stage=stage,
            seed=seed,
            processes=processes,
            watch=Stopwatch(processes.device, enabled=processes.is_main),
        )

    def _require_company(self, rows: RowDataset) -> None:
        # An example alone in its batch is compared with none, and has nothing to learn but from a negative of its own.
        per_batch = self.batch_examples or (self.batch_tokens or 0) / float(rows.lengths.mean())
        if per_batch < 1.5:
            setting = "batch_tokens" if self.batch_tokens is not None else "batch_examples"
            message = (
                f"{per_batch:.2g} examples a batch, on average: this objective compares the examples of a batch with each other."
            )
            raise user_error(f"trainer.{setting}", message)

    def _full_micro_batch(self, rows: RowDataset, num_processes: int) -> int:
        # Tokens of a micro-batch as a rule, and a little more, so that most of them are filled up to this very number.
        of_batch = self.batch_tokens or (self.batch_examples or 1) * float(rows.lengths.mean())
        share = of_batch / num_processes
        number = math.ceil(share / self.micro_batch_tokens) if self.micro_batch_tokens else 1
        return 64 * math.ceil(1.01 * share / number / 64)

    def _scales(self, encoder: Encoder) -> dict[nn.Parameter, float]:
        if self.layer_decay is None:
            return {}
        return {parameter: self.layer_decay ** (encoder.num_layers + 1 - depth) for parameter, depth in encoder.depths().items()}


def _without(held_out: NDArray[np.int64], weights: NDArray[np.float64] | None, size: int) -> NDArray[np.float64] | None:
    # How often each row is seen in an epoch: those that are held out, never.
    if len(held_out):
        weights = np.ones(size) if weights is None else weights.copy()
        weights[held_out] = 0.0
    return weights


def _num_given(settings: tuple[float | None, ...]) -> int:
    return sum(setting is not None for setting in settings)
