"""Search the same embeddings exactly with mlmx and with the flat index of faiss, in turn, and print the ratio.

    python scripts/bench_search.py

Random unit vectors, on a CPU; faiss' index is filled before its clock starts. Both must find the same neighbours. Needs
``pip install 'mlmx[bench]'``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import faiss
import numpy as np
import synthetic
import torch

from mlmx.tasks.search import Neighbours, nearest, normalised


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
    queries, documents = (
        normalised(random.standard_normal((size, given.width), np.float32)) for size in (given.queries, given.documents)
    )
    index = faiss.IndexFlatIP(given.width)
    index.add(documents)

    def theirs() -> Neighbours:
        scores, indices = index.search(queries, given.results)
        return Neighbours(indices, scores)

    def ours() -> Neighbours:
        return nearest(queries, documents, given.results)

    if not np.allclose(ours().scores, theirs().scores, atol=1e-5):
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
    print("| | queries/s, each turn |\n|---|---|")
    for name, values in speeds.items():
        print(f"| {name} | {', '.join(f'{value:,.0f}' for value in values)} |")
    print(f"| mlmx / faiss | **{statistics.median(speeds['mlmx']) / statistics.median(speeds['faiss']):.2f}** (medians) |")


if __name__ == "__main__":
    main()
