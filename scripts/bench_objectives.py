"""Train every objective a step in turn, and print what a token costs beside one of MLM.

    python scripts/bench_objectives.py
    python scripts/bench_objectives.py --objective rts --objective 'mlm objective.mask_ratio=1' corpus=text corpus.path=corpus.txt

What follows the options are settings of ``mlmx pretrain``, what follows an objective's name settings for it alone: an MLM that
selects all tokens costs what one costs whose head is applied to all of them. All have the same encoder, corpus and seed, and one
thread. A step is: making the batch, forward, backward, the optimiser. Its processor time is divided by the tokens the trainer
counts, and by the same number of MLM's step beside it: what else runs on the machine counts little.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import synthetic
import torch

from mlmx.compose import Command, conf_dir
from mlmx.config import check
from mlmx.driver.contents import source_hash
from mlmx.driver.directories import place
from mlmx.driver.execute import run_stages
from mlmx.driver.stages import stages_of
from mlmx.errors import UserError
from mlmx.listing import options
from mlmx.stage import StageDir
from mlmx.training.parallel import ProcessGroup
from mlmx.training.totals import Work, weighted_loss
from mlmx.training.worker import open_pretraining

_SETTINGS = ("parallel.num_threads=1", "tracker=none", "trainer.batch_tokens=1024")
_NEEDS_DROPOUT = ("simcse", "mirror")  # two views of a sentence differ by it


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--objective", action="append", help="its name, and settings; may be repeated; all that fit the corpus by default"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3, help="steps that are not counted")
    parser.add_argument("settings", nargs="*", help="of mlmx pretrain")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.objective or [option.name for option in options("objectives", [conf_dir()])]
    num_steps = given.warmup + given.steps
    settings = [*_SETTINGS, *given.settings, f"trainer.max_steps={num_steps}"]
    with tempfile.TemporaryDirectory() as folder:
        trainings = {}
        for number, name in enumerate(dict.fromkeys(["mlm", *names])):
            own, *more = shlex.split(name)
            try:
                trainings[name] = steps(own, [*settings, *more], Path(folder), stage=f"training-{number}")
            except UserError as error:
                print(f"without {name}: {error}", file=sys.stderr)
        turns = [{name: next(training) for name, training in trainings.items()} for _ in range(num_steps)]
    shown = " ".join([*_SETTINGS, *given.settings])
    print(f"mlmx pretrain {shown}, {given.steps} steps each, {synthetic.hardware()}, {synthetic.versions()}\n")
    print("| objective | time per token beside MLM's: quarter, median, three quarters | model FLOPs beside MLM's |\n|---|---|---|")
    for name in trainings:
        times = [turn[name][0] / turn["mlm"][0] for turn in turns[given.warmup :]]
        flops = statistics.mean(turn[name][1] for turn in turns) / statistics.mean(turn["mlm"][1] for turn in turns)
        low, median, high = (f"{value:.2f}" for value in statistics.quantiles(times, n=4))
        print(f"| {name} | {low}, **{median}**, {high} | {flops:.2f} |")


def steps(name: str, settings: list[str], folder: Path, *, stage: str) -> Iterator[tuple[float, float]]:
    """Return a training that gives seconds of processor time and model FLOPs per token, step by step."""
    dropout = ["trainer.dropout=0.1"] if name.startswith(_NEEDS_DROPOUT) else []
    overrides = [f"objective={name}", *dropout, *settings, f"outputs={folder / 'outputs'}"]
    (config,) = check(Command("pretrain", "pretrain"), overrides).configs
    placed = place(stages_of(config), folder / "outputs")
    with contextlib.redirect_stdout(sys.stderr):
        run_stages(placed[:-1])
    directory = StageDir(folder / stage)
    record = placed[-1].config(source_hash())
    directory.write_config(record | {"parents": {role: str(one.directory.path) for role, one in placed[-1].parents.items()}})
    torch.manual_seed(0)
    objective, rows, trainer = open_pretraining(directory, record["spec"])
    loop = trainer.prepare(objective, rows, directory, seed=0, processes=ProcessGroup())

    def train() -> Iterator[tuple[float, float]]:
        for step in range(trainer.max_steps or 0):
            began = time.process_time()
            batches = loop.batches[step]
            work = Work.of(objective, batches)
            loop.optimizer.zero_grad(set_to_none=True)
            for batch in batches:
                weighted_loss(objective(batch).terms, objective.weights_of(batch), work.counts).backward()  # type: ignore[no-untyped-call]
            loop.optimizer.step()
            objective.after_step(step)
            yield (time.process_time() - began) / work.tokens, work.flops / work.tokens

    return train()


if __name__ == "__main__":
    main()
