"""Embed the same sentences with mlmx and with Sentence-Transformers, in turn, and print the ratio.

    python scripts/bench_encode.py

The same encoder with random weights (BERT, mean pooling), sentences in random order, from text to vectors: tokenising is timed
too. Both must give the same vectors. Needs ``pip install 'mlmx[bench]'``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import synthetic
import torch
from numpy.typing import NDArray

from mlmx.data.rows_from_text import TextRows
from mlmx.models.pooling import encode

_VOCAB_SIZE = 30_522


def main() -> None:
    """Measure."""
    import sentence_transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=2000)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--batch-tokens", type=int, default=8192, help="of mlmx; on a CPU no more than fit its cache")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    lines = synthetic.Lines(given.sentences, vocab_size=_VOCAB_SIZE)
    sentences = [" ".join(f"w{i}" for i in lines.take(np.array([row])).input_ids[1:-1]) for row in range(len(lines))]
    encoder = synthetic.encoder(
        synthetic.tokenizer(_VOCAB_SIZE),
        num_layers=given.num_layers,
        hidden_size=given.hidden_size,
        num_heads=given.hidden_size // 64,
    ).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device)
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(Path(folder))
        # A folder that says nothing of pooling gets mean pooling.
        reference = sentence_transformers.SentenceTransformer(folder, device=str(device))

    def ours() -> NDArray[np.float32]:
        rows = TextRows(sentences, encoder.tokenizer, encoder.vocabulary, synthetic.MAX_LENGTH)
        return encode(encoder, rows, layer=encoder.num_layers, pooling="mean", batch_tokens=given.batch_tokens)

    def theirs() -> NDArray[np.float32]:
        return np.asarray(reference.encode(sentences, batch_size=32, show_progress_bar=False))

    if not np.allclose(ours(), theirs(), atol=1e-4):
        sys.exit("the vectors differ, so the speeds cannot be compared")
    speeds: dict[str, list[float]] = {"sentence-transformers": [], "mlmx": []}
    for _ in range(given.turns):
        for name, run in (("sentence-transformers", theirs), ("mlmx", ours)):
            speeds[name].append(_speed(run, given.sentences))
    versions = synthetic.versions()
    versions += f", sentence-transformers {sentence_transformers.__version__}"
    print(
        f"{given.sentences:,} sentences of {lines.lengths.mean():.1f} tokens on average, {given.num_layers} layers of width "
        f"{given.hidden_size}, {torch.get_num_threads()} threads, {versions}\n"
    )
    print("| | sentences/s, each turn |\n|---|---|")
    for name, values in speeds.items():
        print(f"| {name} | {', '.join(f'{value:,.0f}' for value in values)} |")
    ratio = statistics.median(speeds["mlmx"]) / statistics.median(speeds["sentence-transformers"])
    print(f"| mlmx / sentence-transformers | **{ratio:.2f}** (medians) |")


def _speed(run: Callable[[], NDArray[np.float32]], count: int) -> float:
    began = time.perf_counter()
    run()
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
