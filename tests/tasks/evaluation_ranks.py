"""Tasks judged by one process or several; as a program, one rank of two."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from mlmx.build import build
from mlmx.data.microworld import MicroworldCorpus
from mlmx.models.encoder import Encoder
from mlmx.models.inference import results_saved
from mlmx.models.pooling import encode
from mlmx.tasks import search
from mlmx.tasks.texts import text_rows
from mlmx.training.parallel import ProcessGroup, current, process_group
from tests.tasks.test_conf import node_of
from tests.tiny import scratch_encoder, word_tokenizer

# One task of each kind, with few examples; in small batches, so that there are several rounds of them.
TASKS = {
    "bitext": ["data.num_pairs=60"],
    "eval_mask": ["corpus.num_pairs=40"],
    "next_token": ["corpus.num_pairs=20", "cipher=0"],
    "retrieval": ["data.num_documents=40"],
    "sentiment": ["data.num_train=16", "data.num_dev=8", "data.num_test=50"],
    "similarity": ["data.pairs.num_dev=10", "data.pairs.num_test=40"],
    "tagging": ["corpora.train.num_pairs=10", "corpora.test.num_pairs=30"],
}
BATCH_TOKENS = 40
# So that each process has several blocks of a search, and there is one more for one of them.
search._CPU_BLOCK = (9, 16)


def texts() -> list[str]:
    corpus = MicroworldCorpus(seed=0, num_pairs=100, split="test", view="parallel", languages=["qla", "qka"])
    return [segment.text for example in corpus.examples() for segment in example.segments]


def encoder() -> Encoder:
    return scratch_encoder(word_tokenizer(word for text in texts() for word in text.split()), max_length=128)


def vectors(encoder: Encoder) -> np.ndarray:
    rows = text_rows(encoder, texts(), max_length=32, task="x", what="texts")
    return encode(encoder, rows, layer=1, pooling="mean", batch_tokens=BATCH_TOKENS)


def resumed_vectors(folder: Path, *, is_main: bool) -> np.ndarray:
    """Return the vectors, half of which the disk knows already; the main process knows which, as in a stage."""
    with results_saved(folder, "x") if is_main else nullcontext():
        return vectors(encoder())


def judge(name: str, folder: Path | None) -> str:
    """Return all that an evaluation gives, as text; the objectives of tasks that fine-tune are fresh."""
    overrides = [f"task.{name}.{override}" for override in [*TASKS[name], f"batch_tokens={BATCH_TOKENS}"]]
    task = build(node_of(name, *overrides), where=f"task.{name}")
    task.folder = folder
    own = encoder()
    torch.manual_seed(1)
    evaluation = task.evaluate(task.objective(own) or own)
    return json.dumps([[score.to_json() for score in evaluation.scores], list(evaluation.predictions)])


def run(processes: ProcessGroup, folder: Path) -> None:
    """Judge all tasks; each process writes what it got, and the main one what tasks write beside that."""
    own = folder / str(processes.rank)
    own.mkdir()
    np.save(own / "vectors.npy", vectors(encoder()))
    np.save(own / "resumed.npy", resumed_vectors(folder / "results", is_main=processes.is_main))
    for name in TASKS:
        beside = folder / f"beside-{name}"
        if processes.is_main:
            beside.mkdir()
        (own / f"{name}.json").write_text(judge(name, beside if processes.is_main else None))
    exchanged = processes.gather_arrays([np.full((processes.rank, 2), 7.5), np.arange(3 - processes.rank, dtype=np.int16)])
    assert [[array.tolist() for array in of_rank] for of_rank in exchanged] == [[[], [0, 1, 2]], [[[7.5, 7.5]], [0, 1]]]
    assert processes.gather_arrays([]) == [[], []]


if __name__ == "__main__":
    with process_group(device="cpu", num_threads=1, timeout_seconds=60) as group:
        assert current() is group
        run(group, Path(sys.argv[1]))
    assert current().size == 1
