"""Train with mlmx's trainer and with a bare loop over the same batches, step by step in turn, and print the trainer's overhead.

    python scripts/bench_overhead.py

The bare loop does forward, backward and the optimiser step and nothing else: its batches are made beforehand, nothing is clipped,
checked or logged. The trainer makes its batches in the same thread and logs every step. One thread, seconds of processor time, so
that what else runs on the machine counts little; each step of the one is beside the step of the other on the same batch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import synthetic
import torch

from mlmx.build import build
from mlmx.objectives.objective import Objective
from mlmx.stage import StageDir
from mlmx.training.parallel import ProcessGroup
from mlmx.training.totals import weighted_loss
from mlmx.training.trainer import Trainer

_VOCAB_SIZE = 30_522


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--lines", type=int, default=32, help="of a batch")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=4, help="steps that are not counted")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = synthetic.Lines(4000, vocab_size=_VOCAB_SIZE)
    words = synthetic.tokenizer(_VOCAB_SIZE)
    sizes = {"num_layers": given.num_layers, "hidden_size": given.hidden_size, "num_heads": given.hidden_size // 64}

    def objective() -> Objective:
        made: Objective = build(synthetic.node("objective", "mlm"), synthetic.encoder(words, **sizes), synthetic.CORPUS)
        return made

    # No checkpoint, not even the last one: the trainer's own work is asked for, not the speed of a disk.
    settings = {"checkpoint_every_steps": None, "checkpoint_every_minutes": None, "log_every_steps": 1}
    settings |= {"max_steps": given.warmup + given.steps, "batch_tokens": None, "batch_examples": given.lines}
    trainer = build(synthetic.node("trainer", "pretrain", **settings))
    bare = _Bare(trainer, objective(), lines)
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(objective(), lines, StageDir(Path(folder)), seed=0, processes=ProcessGroup(), on_log=bare.step)
    # From the end of a bare step to the beginning of the next lies one step of the trainer.
    counted = list(pairwise(bare.times))[given.warmup :]
    theirs = [end - begin for _, (begin, end) in counted]
    ours = [begin - end_before for (_, end_before), (begin, _) in counted]
    overheads = [mlmx / loop - 1 for mlmx, loop in zip(ours, theirs, strict=True)]
    print(
        f"{given.num_layers} layers of width {given.hidden_size}, vocabulary {_VOCAB_SIZE:,}, {given.lines} lines a batch, "
        f"{len(counted)} steps, one thread, {synthetic.versions()}\n"
    )
    print("| | ms of processor time per step: quarter, median, three quarters |\n|---|---|")
    for name, values in (("bare loop", theirs), ("mlmx", ours)):
        print(f"| {name} | {', '.join(f'{1000 * value:.1f}' for value in statistics.quantiles(values, n=4))} |")
    low, median, high = (f"{100 * value:.1f}%" for value in statistics.quantiles(overheads, n=4))
    print(f"| overhead, of steps on the same batch | {low}, **{median}**, {high} |")


class _Bare:
    # The bare loop, a step at each call; ``times`` are (begin, end) of each.

    def __init__(self, trainer: Trainer, objective: Objective, lines: synthetic.Lines) -> None:
        self.loop = trainer.prepare(objective, lines, StageDir(Path()), seed=0, processes=ProcessGroup())
        self.made = [self.loop.batches[step] for step in range(trainer.max_steps or 0)]
        self.times: list[tuple[float, float]] = []

    def step(self, _: Any) -> None:
        objective, optimizer = self.loop.objective, self.loop.optimizer
        begin = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        for batch in self.made[len(self.times)]:
            weighted_loss(objective(batch).terms, objective.weights, batch.counts).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        self.times.append((begin, time.process_time()))


if __name__ == "__main__":
    main()
