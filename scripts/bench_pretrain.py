"""Pretrain the same model with mlmx and with the Transformers Trainer, in turn, and print the ratios.

    python scripts/bench_pretrain.py --vocab-size 30522 --num-layers 6 --hidden-size 384
    python scripts/bench_pretrain.py --vocab-size 250002 --num-layers 4 --hidden-size 256

Both train a BERT of the same size on batches of the same number of lines, with 15% of the tokens selected, the same optimiser
settings and the same precision. The Trainer runs as in ``run_mlm.py --line_by_line``: its own collator, rows padded to the longest
of the batch, logits at every position. Each turn is a process of its own, so that its peak memory is its own. Tokens are real ones,
without padding. Needs ``pip install 'mlmx[bench]'``.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_NUM_LINES = 4_000
_TOLERANCE = 0.05  # between the two final losses: batches and masks differ


def main() -> None:
    """Measure, or take one turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=30_522)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--lines", type=int, default=32, help="of a batch")
    parser.add_argument("--steps", type=int, default=30, help="of a turn")
    parser.add_argument("--warmup", type=int, default=5, help="steps of a turn that are not timed")
    parser.add_argument("--turns", type=int, default=2, help="of each")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--turn", choices=["mlmx", "trainer"], help="take one turn only; what the others are made of")
    given = parser.parse_args()
    if given.turn:
        record = (_mlmx if given.turn == "mlmx" else _trainer)(given)
        record["peak_bytes"] = _peak_bytes()
        print(json.dumps(record))
        return
    turns: dict[str, list[dict[str, Any]]] = {"trainer": [], "mlmx": []}
    for _ in range(given.turns):
        for name in turns:
            command = [sys.executable, __file__, *sys.argv[1:], "--turn", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            turns[name].append(json.loads(done.stdout.splitlines()[-1]))
    _report(given, turns)


def _mlmx(given: argparse.Namespace) -> dict[str, Any]:
    import synthetic
    import torch

    from mlmx.build import build
    from mlmx.stage import StageDir
    from mlmx.training.parallel import ProcessGroup

    lines = synthetic.Lines(_NUM_LINES, vocab_size=given.vocab_size)
    encoder = synthetic.encoder(synthetic.tokenizer(given.vocab_size), **_sizes(given))
    objective = build(synthetic.node("objective", "mlm"), encoder, synthetic.CORPUS)
    settings = {"max_steps": given.steps, "batch_tokens": None, "batch_examples": given.lines, "log_every_steps": 1}
    settings |= {"checkpoint_every_steps": None, "precision": given.precision, "learning_rate": 1e-3}
    trainer = build(synthetic.node("trainer", "pretrain", **settings))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    logged: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(objective, lines, StageDir(Path(folder)), seed=0, processes=ProcessGroup(device=device), on_log=logged.append)
    first, last = logged[given.warmup - 1], logged[-1]
    speed = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
    return {"tokens_per_second": speed, "losses": [record["loss"] for record in logged]}


def _trainer(given: argparse.Namespace) -> dict[str, Any]:
    import synthetic
    import torch
    import transformers
    from torch.utils.data import Dataset

    class Features(Dataset[dict[str, Any]]):
        def __init__(self) -> None:
            lines = synthetic.Lines(_NUM_LINES, vocab_size=given.vocab_size)
            keys = ("input_ids", "special_tokens_mask")
            self.lines = [{key: line[key] for key in keys} for line in map(lines.features, range(len(lines)))]

        def __len__(self) -> int:
            return len(self.lines)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return self.lines[index]

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.losses: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            self.losses += [logs["loss"]] if logs and "loss" in logs else []

    class Collator(transformers.DataCollatorForLanguageModeling):  # type: ignore[misc]
        # Counts the real tokens; adds nothing else.
        num_tokens: list[int] = []  # noqa: RUF012 - one collator a process

        def __call__(self, features: Any, return_tensors: Any = None) -> Any:
            self.num_tokens.append(sum(len(line["input_ids"]) for line in features))
            return super().__call__(features, return_tensors)

    words = synthetic.tokenizer(given.vocab_size)
    config = synthetic.scratch(words, **_sizes(given)).config(given.vocab_size)
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_config(config)
    clock, collator = Clock(), Collator(words, mlm_probability=0.15)
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=given.steps,
            per_device_train_batch_size=given.lines,
            learning_rate=1e-3,
            weight_decay=0.01,
            adam_beta2=0.98,
            adam_epsilon=1e-6,
            warmup_steps=round(0.1 * given.steps),
            bf16=given.precision == "bfloat16",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=0,
        )
        transformers.Trainer(
            model=model, args=settings, train_dataset=Features(), data_collator=collator, callbacks=[clock]
        ).train()
    # The loader makes a batch ahead: the first `steps` batches are those that were trained on.
    tokens = sum(collator.num_tokens[given.warmup : given.steps])
    return {"tokens_per_second": tokens / (clock.seconds[-1] - clock.seconds[given.warmup - 1]), "losses": clock.losses}


def _sizes(given: argparse.Namespace) -> dict[str, int]:
    return {"num_layers": given.num_layers, "hidden_size": given.hidden_size, "num_heads": given.hidden_size // 64}


def _peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _report(given: argparse.Namespace, turns: dict[str, list[dict[str, Any]]]) -> None:
    import synthetic
    import torch

    last = max(1, given.steps // 4)
    rows = {}
    for name, records in turns.items():
        speed = statistics.median(record["tokens_per_second"] for record in records)
        peak = max(record["peak_bytes"] for record in records)
        loss = statistics.mean(statistics.mean(record["losses"][-last:]) for record in records)
        rows[name] = speed, peak, records[0]["losses"][0], loss
    print(
        f"vocabulary {given.vocab_size:,}, {given.num_layers} layers of width {given.hidden_size}, {given.lines} lines a batch, "
        f"{given.steps} steps, {given.turns} turns each, {given.precision}, "
        f"{torch.get_num_threads()} threads of {synthetic.hardware()}, {synthetic.versions()}\n"
    )
    print("| | real tokens/s, each turn | peak memory | first loss | loss of the last quarter |\n|---|---|---|---|---|")
    for name, (_, peak, first, loss) in rows.items():
        speeds = ", ".join(f"{record['tokens_per_second']:,.0f}" for record in turns[name])
        print(f"| {name} | {speeds} | {peak / 2**30:.2f} GiB | {first:.3f} | {loss:.3f} |")
    theirs, ours = rows["trainer"], rows["mlmx"]
    print(f"| mlmx / trainer | **{ours[0] / theirs[0]:.1f}** (medians) | {ours[1] / theirs[1]:.2f} | | |")
    if abs(ours[3] / theirs[3] - 1) > _TOLERANCE or ours[3] >= ours[2]:
        sys.exit("the losses are not reduced alike, so the speeds cannot be compared")


if __name__ == "__main__":
    main()
