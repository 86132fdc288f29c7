"""A toy objective and the shortest way to train it; as a program it is one rank of a training under torchrun."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from mlmx import keyed
from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import RowDataset, TokenRows
from mlmx.objectives.objective import Objective, Output
from mlmx.stage import StageDir
from mlmx.training.checkpoint import save_module
from mlmx.training.parallel import ProcessGroup, process_group
from mlmx.training.trainer import Stopped, Trainer
from tests.tiny import TRAINER, numbered_tokenizer, scratch_encoder

VOCABULARY_SIZE = 64

SETTINGS = {**TRAINER, "max_steps": 12, "max_length": 64}


def toy_tokenizer():
    return numbered_tokenizer(VOCABULARY_SIZE)


def toy_encoder(architecture: str = "bert"):
    return scratch_encoder(toy_tokenizer(), max_length=64, architecture=architecture)


class ToyRows(RowDataset):
    """Rows of 3 to 33 random tokens."""

    def __init__(self, num_rows: int = 40) -> None:
        keys = keyed.row_keys(seed=1, epoch=0, row_ids=np.arange(num_rows))
        self.lengths = (3 + keyed.integers(keys, 31)).astype(np.int32)
        self.num_truncated = {}

    def take(self, indices: NDArray[np.int64]) -> TokenRows:
        lengths = self.lengths[indices]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        within = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
        keys = keyed.fold(np.repeat(keyed.row_keys(seed=2, epoch=0, row_ids=indices), lengths), within)
        input_ids = 5 + keyed.integers(keys, VOCABULARY_SIZE - 5)
        ends = (within == 0) | (within == np.repeat(lengths, lengths) - 1)
        input_ids[ends] = np.where(within[ends] == 0, 2, 3)
        return TokenRows(
            input_ids=input_ids,
            cu_seqlens=cu_seqlens,
            words=np.where(ends, -1, within - 1).astype(np.int32),
            segments=np.zeros(len(within), np.int8),
            languages=np.where(ends, -1, 0).astype(np.int8),
            row_ids=indices,
        )


class ToyCollator(Collator):
    """Masks ordinary tokens with probability 0.3; the loss also weighs the first token's vector, for a second term."""

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        within = np.arange(len(rows.input_ids)) - np.repeat(rows.cu_seqlens[:-1], rows.lengths)
        draws = keyed.uniform(keyed.fold(np.repeat(context.keys, rows.lengths), within))
        selected = np.flatnonzero((draws < 0.3) & ~rows.special)
        corrupted = rows.input_ids.copy()
        corrupted[selected] = 4
        return packed_batch(
            rows,
            context,
            counts={"tokens": len(selected), "rows": rows.num_rows},
            input_ids=corrupted,
            selected=selected,
            targets=rows.input_ids[selected],
        )


class ToyObjective(Objective):
    """Predicts masked tokens, and the parity of the row's length."""

    def __init__(self, encoder) -> None:
        super().__init__()
        self.encoder = encoder
        torch.manual_seed(1)
        self.parity = nn.Linear(encoder.hidden_size, 2)
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))
        self.weights = {"tokens": 1.0, "rows": 0.5}

    def collator(self) -> Collator:
        return ToyCollator()

    def forward(self, batch: Batch) -> Output:
        states = self.encoder(batch)
        logits = self.encoder.head(states[batch.tensors["selected"]])
        starts = batch.tensors["cu_seqlens"][:-1].long()
        lengths = batch.tensors["cu_seqlens"].diff().long()
        tokens = F.cross_entropy(logits, batch.tensors["targets"], reduction="sum")
        rows = F.cross_entropy(self.parity(states[starts]), lengths % 2, reduction="sum")
        right = (logits.argmax(-1) == batch.tensors["targets"]).sum()
        return Output({"tokens": tokens, "rows": rows}, {"accuracy": (right, torch.tensor(len(logits)))})

    def after_step(self, step: int) -> None:
        self.steps_seen += 1


def train(folder: Path, *, processes: ProcessGroup | None = None, objective=None, seed: int = 0, **settings: Any):
    """Train the toy in a stage directory and return the objective and the result."""
    stage = StageDir(folder)
    folder.mkdir(parents=True, exist_ok=True)
    objective = objective or ToyObjective(toy_encoder())
    trainer = Trainer(**{**SETTINGS, **settings})
    result = trainer.fit(objective, ToyRows(), stage, seed=seed, processes=processes or ProcessGroup())
    return objective, result


class Stopping(ToyObjective):
    """Asks for a stop in the sixth step."""

    def __init__(self, encoder, processes: ProcessGroup) -> None:
        super().__init__(encoder)
        self.processes = processes

    def forward(self, batch: Batch) -> Output:
        if batch.step == 5:
            self.processes.request_stop()
        return super().forward(batch)


def six_and_six(folder: Path, processes: ProcessGroup, **settings: Any) -> None:
    """Twelve steps without a stop, and with one after the sixth; keeps the weights of both."""
    for name, stops in (("whole", False), ("halves", True)):
        if stops:
            with suppress(Stopped):
                train(folder / name, objective=Stopping(toy_encoder(), processes), processes=processes, **settings)
            processes.stop_requested = False
        objective, _ = train(folder / name, processes=processes, **settings)
        if processes.is_main:
            save_module(objective, folder / name / "model.safetensors")


def run_layouts(processes: ProcessGroup, folder: Path) -> None:
    """What tests ask of several processes, by one start of them."""
    for name, num_shards in (("replicated", 1), ("sharded", processes.size)):
        group = replace(processes, num_shards=num_shards)
        train(folder / name / "losses", processes=group, max_steps=20)
        train(folder / name / "double", objective=ToyObjective(toy_encoder()).double(), processes=group, max_steps=20)
        # Rows are micro-batches of their own, so that some process has fewer of them than another.
        train(folder / name / "uneven", processes=group, max_steps=8, micro_batch_tokens=1, batch_examples=5)
        with suppress(Stopped):
            train(folder / name / "stopped", objective=Stopping(toy_encoder(), group), processes=group)
        group.stop_requested = False
        for optimizer in ("adamw", "stable_adamw"):
            six_and_six(folder / name / optimizer, group, optimizer=optimizer, dropout=0.1)


if __name__ == "__main__":
    with process_group(device="cpu", num_threads=1, timeout_seconds=60) as processes:
        run_layouts(processes, Path(sys.argv[1]))
