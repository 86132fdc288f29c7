"""Search the same embeddings exactly with mlmx and with the flat index of faiss, in turn, and print the ratio.

    python scripts/bench_search.py
    python scripts/bench_search.py --queries 4000 --documents 1000000 --results 4 --threads 1 --turns 0   # memory only

Random unit vectors, on a CPU; faiss' index is filled before its clock starts. Both must find the same neighbours. Needs
``pip install 'mlmx[bench]'``.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time

import faiss
import numpy as np
import synthetic
import torch
from numpy.typing import NDArray

from mlmx.tasks.search import Neighbours, nearest, normalised

_AT_ONCE = 10_000  # vectors


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--results", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    random = np.random.default_rng(0)
    queries, documents = (unit_vectors(random, size, given.width) for size in (given.queries, given.documents))
    before = peak_gib()
    own = nearest(queries, documents, given.results)
    after = peak_gib()
    index = faiss.IndexFlatIP(given.width)
    index.add(documents)

    def theirs() -> Neighbours:
        scores, indices = index.search(queries, given.results)
        return Neighbours(indices, scores)

    def ours() -> Neighbours:
        return nearest(queries, documents, given.results)

    if not np.allclose(own.scores, theirs().scores, atol=1e-5):
        sys.exit("the neighbours differ, so the speeds cannot be compared")
    speeds: dict[str, list[float]] = {"faiss": [], "mlmx": []}
    for _ in range(given.turns):
        for name, run in (("faiss", theirs), ("mlmx", ours)):
            began = time.perf_counter()
            run()
            speeds[name].append(given.queries / (time.perf_counter() - began))
    print(
        f"{given.queries:,} queries, {given.documents:,} documents of width {given.width}, {given.results} results, "
        f"{given.threads} threads, {synthetic.versions()}, faiss {faiss.__version__}\n"
    )
    print(f"peak memory of the process: {before:.2f} GiB with the embeddings, {after:.2f} GiB after a search by mlmx\n")
    if not given.turns:
        return
    print("| | queries/s, each turn |\n|---|---|")
    for name, values in speeds.items():
        print(f"| {name} | {', '.join(f'{value:,.0f}' for value in values)} |")
    print(f"| mlmx / faiss | **{statistics.median(speeds['mlmx']) / statistics.median(speeds['faiss']):.2f}** (medians) |")


def unit_vectors(random: np.random.Generator, num: int, width: int) -> NDArray[np.float32]:
    """Return random vectors (num, width) of length 1, made without a second copy of them."""
    vectors = np.empty((num, width), np.float32)
    for start in range(0, num, _AT_ONCE):
        block = vectors[start : start + _AT_ONCE]
        block[:] = normalised(random.standard_normal(block.shape, np.float32))
    return vectors


def peak_gib() -> float:
    """Return the most memory that the process has held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
