"""Train the same model on the same batches in several layouts, with mlmx and with the Transformers Trainer, and print how far apart
the numbers are.

    python scripts/exactness.py

Each row is compared with one process that takes a batch in one piece: the first 20 losses, the largest difference relative to the
loss, and the first gradient, the difference relative to its norm. Both train a BERT without dropout on the same lines in the same
order; losses are those that the programs log. Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

_VOCAB_SIZE, _SIZES = 1000, {"num_layers": 2, "hidden_size": 64, "num_heads": 4}
_LINES, _STEPS, _STOP = 8, 20, 10
_DTYPES = ("float32", "float64")
_GIVEN = {"max_steps": _STEPS, "batch_tokens": None, "batch_examples": _LINES, "max_grad_norm": None}

_REFERENCE = "one process, one piece"
# What differs from the reference; `ranks` processes.
_MLMX: dict[str, dict[str, Any]] = {
    _REFERENCE: {},
    "the same again": {},
    "8 micro-batches of a line": {"micro_batch_tokens": 1},
    "2 processes": {"ranks": 2},
    "4 processes": {"ranks": 4},
    "2 processes, weights divided": {"ranks": 2, "num_shards": 2},
    "4 processes, weights divided": {"ranks": 4, "num_shards": 4},
    "4 processes, 2 copies divided by 2": {"ranks": 4, "num_shards": 2},
    "padded rows": {"packed": False},
    "4 loader workers": {"num_workers": 4},
    f"stopped after {_STOP} steps and resumed": {"resume": True},
}
_TRAINER: dict[str, dict[str, Any]] = {
    _REFERENCE: {},
    "2 micro-batches of 4 lines": {"accumulation": 2},
    "8 micro-batches of a line": {"accumulation": 8},
    "2 processes": {"ranks": 2},
    "masks made by its collator": {"dynamic": True},
    "the same, 4 loader workers": {"dynamic": True, "num_workers": 4},
    f"the same, stopped after {_STOP} steps and resumed": {"dynamic": True, "resume": True},
}
# What the rows with dynamic masks are compared with.
_DYNAMIC = "masks made by its collator"


def main() -> None:
    """Measure, each row in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs=3, metavar=("PROGRAM", "SETTINGS", "FOLDER"), help="(one row, in this process)")
    given = parser.parse_args()
    if given.only:
        program, settings, folder = given.only
        {"mlmx": _mlmx, "trainer": _trainer}[program](Path(folder), **json.loads(settings))
        return
    import synthetic

    print(f"{_LINES} lines a batch, {_STEPS} steps, a BERT with {_SIZES['num_layers']} layers, {synthetic.hardware()}, ", end="")
    print(f"{synthetic.versions()}\n")
    with tempfile.TemporaryDirectory() as folder:
        for program, rows in (("mlmx", _MLMX), ("trainer", _TRAINER)):
            for number, settings in enumerate(rows.values()):
                _start(program, settings, Path(folder) / program / str(number))
            _report(program, rows, Path(folder) / program)


def _start(program: str, settings: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True)
    ranks = settings.get("ranks", 1)
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *start, __file__, "--only", program, json.dumps(settings), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{program} {settings}:\n{done.stdout}\n{done.stderr}")


def _report(program: str, rows: dict[str, dict[str, Any]], folder: Path) -> None:
    dtypes = _DTYPES if program == "mlmx" else _DTYPES[:1]
    columns = [f"{what}, {dtype}" for dtype in dtypes for what in ("losses", "first gradient")]
    print(f"| {program} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    names = list(rows)
    for number, (name, settings) in enumerate(rows.items()):
        reference = names.index(_DYNAMIC if settings.get("dynamic") else _REFERENCE)
        cells = []
        for dtype in dtypes:
            (losses, gradient), (other, other_gradient) = (_numbers(folder / str(row), dtype) for row in (number, reference))
            cells.append(_told(float(np.max(np.abs(losses / other - 1)))))
            cells.append(_told(float(np.linalg.norm(gradient - other_gradient) / np.linalg.norm(other_gradient))))
        print(f"| {name} | {' | '.join(cells) if number != reference else '(reference)' + ' |' * (len(cells) - 1)} |")
    print()


def _told(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0, bitwise"


def _numbers(folder: Path, dtype: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return np.array(json.loads((folder / f"{dtype}.json").read_text())), np.load(folder / f"{dtype}.npy")


def _mlmx(folder: Path, *, ranks: int = 1, num_shards: int = 1, packed: bool = True, resume: bool = False, **settings: Any) -> None:
    import synthetic
    import torch

    from mlmx.build import build
    from mlmx.stage import StageDir
    from mlmx.training.parallel import process_group
    from mlmx.training.shard import whole
    from mlmx.training.trainer import Stopped

    lines, words = synthetic.Lines(_LINES * _STEPS, vocab_size=_VOCAB_SIZE), synthetic.tokenizer(_VOCAB_SIZE)
    given = {**_GIVEN, "log_every_steps": 1, "checkpoint_every_steps": None, **settings}
    trainer = build(synthetic.node("trainer", "pretrain", **given))
    with process_group(device="cpu", num_threads=1, timeout_seconds=120, num_shards=num_shards) as processes:
        for dtype in _DTYPES:
            stage = StageDir(folder / f"stage-{dtype}")
            stage.path.mkdir(exist_ok=True)
            for stops in (True, False) if resume else (False,):
                encoder = synthetic.encoder(words, **_SIZES)
                if not packed:
                    encoder.packed = False
                    encoder.base.set_attn_implementation("sdpa")
                objective = build(synthetic.node("objective", "mlm"), encoder, synthetic.CORPUS).to(getattr(torch, dtype))

                def after_step(step: int, objective: Any = objective, dtype: str = dtype, stops: bool = stops) -> None:
                    if step == 0:
                        gradients = [whole(p.grad).flatten() for p in objective.parameters() if p.grad is not None]
                        if processes.is_main:
                            np.save(folder / f"{dtype}.npy", torch.cat(gradients).numpy())
                    if stops and step == _STOP - 2:
                        processes.request_stop()

                objective.after_step = after_step
                with suppress(Stopped):
                    trainer.fit(objective, lines, stage, seed=0, processes=processes)
                processes.stop_requested = False
            if processes.is_main:
                records = [json.loads(line) for line in stage.metrics_path.read_text().splitlines()]
                (folder / f"{dtype}.json").write_text(json.dumps([record["loss"] for record in records]))


def _trainer(
    folder: Path, *, ranks: int = 1, accumulation: int = 1, num_workers: int = 0, dynamic: bool = False, resume: bool = False
) -> None:
    import synthetic
    import torch
    import transformers
    from torch.utils.data import SequentialSampler

    from mlmx.build import build
    from mlmx.stage import StageDir
    from mlmx.training.parallel import ProcessGroup

    torch.set_num_threads(1)
    lines, words = synthetic.Lines(_LINES * _STEPS, vocab_size=_VOCAB_SIZE), synthetic.tokenizer(_VOCAB_SIZE)
    # mlmx' batches, so that both train on the same lines, masked in the same places.
    objective = build(synthetic.node("objective", "mlm"), synthetic.encoder(words, **_SIZES), synthetic.CORPUS)
    trainer = build(synthetic.node("trainer", "pretrain", **_GIVEN))
    batches = trainer.prepare(objective, lines, StageDir(folder), seed=0, processes=ProcessGroup()).batches
    features = []
    for step in range(_STEPS):
        (batch,) = batches[step]
        labels = torch.full_like(batch.tensors["input_ids"], -100)
        labels[batch.tensors["selected"]] = batch.tensors["targets"]
        original = batch.tensors["input_ids"].clone()
        original[batch.tensors["selected"]] = batch.tensors["targets"]
        rows = batch.tensors["cu_seqlens"].diff().tolist()
        parts = (tensor.split(rows) for tensor in (batch.tensors["input_ids"], labels, original))
        for masked, label, line in zip(*parts, strict=True):
            fixed = {"input_ids": masked.tolist(), "labels": label.tolist()}
            features.append({"input_ids": line.tolist()} if dynamic else fixed)

    class InOrder(transformers.Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    class Watching(transformers.TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, arguments: Any, state: Any, *_: Any, model: Any, **__: Any) -> None:
            if state.global_step == 0:
                gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
                np.save(folder / "float32.npy", torch.cat(gradients).numpy())

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= resume and not resumed and state.global_step == _STOP

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    settings = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=_STEPS,
        per_device_train_batch_size=_LINES // (ranks * accumulation),
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-3,
        weight_decay=0.01,
        adam_beta2=0.98,
        adam_epsilon=1e-6,
        warmup_steps=2,
        max_grad_norm=0.0,
        logging_steps=1,
        dataloader_num_workers=num_workers,
        save_steps=_STOP,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    pad = transformers.DataCollatorForTokenClassification(words)
    collator = transformers.DataCollatorForLanguageModeling(words, mlm_probability=0.15) if dynamic else pad
    losses: list[float] = []
    for resumed in (False, True) if resume else (False,):
        torch.manual_seed(0)
        config = synthetic.scratch(words, **_SIZES).config(_VOCAB_SIZE)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        model = transformers.AutoModelForMaskedLM.from_config(config)
        trained = InOrder(model=model, args=settings, train_dataset=features, data_collator=collator, callbacks=[Watching()])
        trained.train(resume_from_checkpoint=resumed)
    if trained.is_world_process_zero():
        (folder / "float32.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
