"""Train every objective a step in turn, and print what a token costs beside one of MLM.

    python scripts/bench_objectives.py
    python scripts/bench_objectives.py --objectives mlm,rts,electra corpus=text corpus.path=corpus.txt corpus.language=en model=mini

What follows the options are settings of ``mlmx pretrain``. All objectives have the same encoder, corpus and seed, and one thread. A
step is: making the batch, forward, backward, the optimiser. Its processor time is divided by the tokens the trainer counts, and
by the same number of MLM's step beside it: what else runs on the machine counts little.
"""

from __future__ import annotations

import argparse
import contextlib
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
    parser.add_argument("--objectives", default="", help="separated by commas; all that fit the corpus if empty")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3, help="steps that are not counted")
    parser.add_argument("settings", nargs="*", help="of mlmx pretrain")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.objectives.split(",") if given.objectives else [option.name for option in options("objectives", [conf_dir()])]
    num_steps = given.warmup + given.steps
    with tempfile.TemporaryDirectory() as folder:
        trainings = {}
        for name in dict.fromkeys(["mlm", *names]):
            try:
                trainings[name] = steps(name, [*_SETTINGS, *given.settings, f"trainer.max_steps={num_steps}"], Path(folder))
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


def steps(name: str, settings: list[str], folder: Path) -> Iterator[tuple[float, float]]:
    """Return a training that gives seconds of processor time and model FLOPs per token, step by step."""
    dropout = ["trainer.dropout=0.1"] if name.startswith(_NEEDS_DROPOUT) else []
    overrides = [f"objective={name}", *dropout, *settings, f"outputs={folder / 'outputs'}"]
    (config,) = check(Command("pretrain", "pretrain"), overrides).configs
    placed = place(stages_of(config), folder / "outputs")
    with contextlib.redirect_stdout(sys.stderr):
        run_stages(placed[:-1])
    stage = StageDir(folder / name)
    record = placed[-1].config(source_hash())
    stage.write_config(record | {"parents": {role: str(one.directory.path) for role, one in placed[-1].parents.items()}})
    torch.manual_seed(0)
    objective, rows, trainer = open_pretraining(stage, record["spec"])
    loop = trainer.prepare(objective, rows, stage, seed=0, processes=ProcessGroup())

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
