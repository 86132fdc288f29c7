"""Train with mlmx's trainer and with a bare loop over the same batches, in turn, and print the trainer's overhead.

    python scripts/bench_overhead.py

The bare loop does forward, backward and the optimiser step and nothing else: its batches are made beforehand, nothing is clipped,
checked or logged. One thread, in seconds of processor time, so that what else runs on the machine counts little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

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
    parser.add_argument("--steps", type=int, default=16, help="of a turn")
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = synthetic.Lines(4000, vocab_size=_VOCAB_SIZE)
    words = synthetic.tokenizer(_VOCAB_SIZE)
    sizes = {"num_layers": given.num_layers, "hidden_size": given.hidden_size, "num_heads": given.hidden_size // 64}
    # No checkpoint, not even the last one: the trainer's own work is asked for, not the speed of a disk.
    no_checkpoints = {"checkpoint_every_steps": None, "checkpoint_every_minutes": None}
    settings = {"max_steps": given.steps, "batch_tokens": None, "batch_examples": given.lines, **no_checkpoints}
    trainer = build(synthetic.node("trainer", "pretrain", **settings))
    seconds: dict[str, list[float]] = {"bare loop": [], "mlmx": []}
    for _ in range(given.turns):
        for name, run in (("bare loop", _bare), ("mlmx", _trained)):
            objective = build(synthetic.node("objective", "mlm"), synthetic.encoder(words, **sizes), synthetic.CORPUS)
            seconds[name].append(run(trainer, objective, lines) / given.steps)
    print(
        f"{given.num_layers} layers of width {given.hidden_size}, vocabulary {_VOCAB_SIZE:,}, {given.lines} lines a batch, "
        f"one thread, {synthetic.versions()}\n"
    )
    print("| | ms of processor time per step, each turn |\n|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {', '.join(f'{1000 * value:.1f}' for value in values)} |")
    # Of neighbouring turns, so that a machine that slows down slows both.
    ratios = [ours / theirs - 1 for ours, theirs in zip(seconds["mlmx"], seconds["bare loop"], strict=True)]
    print(f"| overhead | **{100 * statistics.median(ratios):.1f}%** (median of the turns) |")


def _trained(trainer: Trainer, objective: Objective, lines: synthetic.Lines) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        trainer.fit(objective, lines, StageDir(Path(folder)), seed=0, processes=ProcessGroup())
        return time.process_time() - began


def _bare(trainer: Trainer, objective: Objective, lines: synthetic.Lines) -> float:
    loop = trainer.prepare(objective, lines, StageDir(Path()), seed=0, processes=ProcessGroup())
    made = [loop.batches[step] for step in range(trainer.max_steps or 0)]
    began = time.process_time()
    for micro_batches in made:
        loop.optimizer.zero_grad(set_to_none=True)
        for batch in micro_batches:
            weighted_loss(objective(batch).terms, objective.weights, batch.counts).backward()  # type: ignore[no-untyped-call]
        loop.optimizer.step()
    return time.process_time() - began


if __name__ == "__main__":
    main()
