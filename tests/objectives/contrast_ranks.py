"""Examples of queries and documents shared among processes in all the ways that matter; as a program, one rank of two."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mlmx.data.batch import Batch, BatchContext
from mlmx.data.rows_from_text import TextRows
from mlmx.models.encoder import Encoder
from mlmx.tasks.bi_encoder import TERM, BiEncoder, QueryRows
from mlmx.training.parallel import ProcessGroup, process_group
from tests.tiny import numbered_tokenizer, scratch_encoder

NUM_QUERIES = 8
# Rows of rank 0 and of rank 1; None stands for a rank that has none, and repeats a row of the other that does not count.
SHARES = {
    "uneven": ([0, 1, 2], [3, 4, 5, 6, 7]),
    "one": ([0, 1, 2, 3, 4, 5, 6], [7]),
    "none": ([0, 1, 2, 3, 4, 5, 6, 7], None),
}
CHUNKS = (None, 24)


def encoder() -> Encoder:
    return scratch_encoder(numbered_tokenizer(200), max_length=64)


def rows(encoder: Encoder) -> QueryRows:
    """Eight queries and twelve documents of two to seven words; each query has a negative, and documents repeat."""
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in random.integers(0, 190, 2 + number % 6)) for number in range(NUM_QUERIES + 12)]
    positives = [0, 1, 2, 3, 4, 0, 6, 7]  # of queries 0 and 5 the same one
    negatives = [8, 9, 10, 11, 3, 8, 1, 5]  # some are other queries' documents
    relevant = [[positive] for positive in positives]
    relevant[2] = [2, 7]  # so document 7, of query 7, is no negative of query 2
    examples = [[q, NUM_QUERIES + p, NUM_QUERIES + n] for q, (p, n) in enumerate(zip(positives, negatives, strict=True))]
    tokenised = TextRows(texts, encoder.tokenizer, encoder.vocabulary, 64)
    return QueryRows(tokenised, np.array(examples), [[NUM_QUERIES + d for d in documents] for documents in relevant])


def objective(encoder: Encoder, chunk_tokens: int | None = None, **settings) -> BiEncoder:
    torch.manual_seed(0)
    chosen = {"pooling": "mean", "similarity": "cosine", "temperature": 0.1, **settings}
    return BiEncoder(encoder, chunk_tokens=chunk_tokens, **chosen).double()


def batch_of(model: BiEncoder, indices: list[int]) -> Batch:
    chosen = np.array(indices)
    return model.collator()(rows(model.encoder).take(chosen), BatchContext(keys=chosen))


def loss_and_gradient(model: BiEncoder, batch: Batch) -> tuple[float, torch.Tensor]:
    """The summed loss of a batch, and the gradient of its parameters."""
    model.zero_grad()
    loss = model(batch).terms[TERM]
    (loss if batch.counted else 0 * loss).backward()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return float(loss.detach()), torch.cat([part.flatten() for part in gradient])


def run(processes: ProcessGroup, folder: Path) -> None:
    for name, shares in SHARES.items():
        for chunk_tokens in CHUNKS:
            model = objective(encoder(), chunk_tokens)
            own = shares[processes.rank]
            batch = batch_of(model, own) if own is not None else replace(batch_of(model, shares[0][:1]), counted=False)
            loss, gradient = loss_and_gradient(model, batch)
            losses = processes.gather(loss)
            torch.distributed.all_reduce(gradient)
            if processes.is_main:
                (folder / f"{name}-{chunk_tokens}.json").write_text(json.dumps({"losses": losses, "gradient": gradient.tolist()}))


if __name__ == "__main__":
    with process_group(device="cpu", num_threads=1, timeout_seconds=60) as group:
        run(group, Path(sys.argv[1]))
