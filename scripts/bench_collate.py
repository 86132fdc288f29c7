"""Mask and batch the same lines with mlmx and with Transformers' collator, in turn, on one core, and print the ratios.

    python scripts/bench_collate.py

Batches of 32 lines (of 16 pairs of lines: ``lem_para``). Transformers' collators pad to the longest row of the batch (``mlm``) or,
as the whole-word one asks for, to the maximum. Tokens are real ones, without padding. What is timed is the collator and nothing
else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import synthetic
import torch
import transformers

from mlmx import keyed
from mlmx.build import build
from mlmx.data.batch import BatchContext, Collator
from mlmx.data.rows import TokenRows

_VOCAB_SIZE = 30_522


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=32, help="of a batch")
    parser.add_argument("--batches", type=int, default=200, help="of a turn of mlmx; a tenth of it of the others")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    if given.lines % 2:
        parser.error("--lines must be even: lem_para reads pairs of lines")
    torch.set_num_threads(1)
    lines = synthetic.Lines(given.lines * given.batches, vocab_size=_VOCAB_SIZE)
    words = synthetic.tokenizer(_VOCAB_SIZE)
    encoder = synthetic.encoder(words, num_layers=1, hidden_size=64, num_heads=1)
    batches = np.array_split(np.arange(len(lines)), given.batches)
    taken = [lines.take(rows) for rows in batches]
    pairs = [_paired(rows) for rows in taken]
    features = [[lines.features(row) for row in rows] for rows in batches[: given.batches // 10]]
    plain = transformers.DataCollatorForLanguageModeling(words, mlm_probability=0.15)
    whole = transformers.DataCollatorForLanguageModeling(words, mlm_probability=0.15, whole_word_mask=True)
    theirs = {
        "mlm": (plain, [[_without_offsets(line) for line in batch] for batch in features]),
        "whole_word": (whole, [[_padded(line) for line in batch] for batch in features]),
    }
    ours = {name: _collator(name, encoder) for name in ("mlm", "whole_word", "lem_mono", "lem_para")}
    speeds: dict[str, list[float]] = {}
    for _ in range(given.turns):
        # What a collator is given is made anew for each turn, outside the time: Transformers' collators consume their features, and
        # rows keep what was worked out about them.
        for name, (collate, lists) in theirs.items():
            made = [([dict(line) for line in batch],) for batch in lists]
            num_tokens = int(lines.lengths[np.concatenate(batches[: len(lists)])].sum())
            speeds.setdefault(f"transformers {name}", []).append(_speed(collate, made, num_tokens))
        for name, collator in ours.items():
            given_rows = [(replace(rows), _context(rows)) for rows in (pairs if collator.view == "pair" else taken)]
            speeds.setdefault(f"mlmx {name}", []).append(_speed(collator, given_rows, int(lines.lengths.sum())))
    print(f"batches of {given.lines} lines of {lines.lengths.mean():.1f} tokens on average, one thread, {synthetic.versions()}\n")
    print("| | tokens/s (median) | against Transformers |\n|---|---|---|")
    for name, values in speeds.items():
        reference = speeds["transformers mlm" if name.endswith(" mlm") else "transformers whole_word"]
        ratio = f"**{statistics.median(values) / statistics.median(reference):.1f}**" if name.startswith("mlmx") else ""
        print(f"| {name} | {statistics.median(values):,.0f} | {ratio} |")


def _collator(name: str, encoder: Any) -> Collator:
    if name.startswith("lem_"):
        settings = {**synthetic.node("objective", "lem"), **synthetic.node("objective", name)}
    else:
        settings = synthetic.node("objective", name)
    settings.pop("defaults", None)
    collator: Collator = build(settings, encoder, replace(synthetic.CORPUS, num_sides=2)).collator()
    return collator


def _paired(rows: TokenRows) -> TokenRows:
    # Each two lines become the two sides of a row, with the special tokens they have.
    side = rows.row_of_token % 2
    num_words = np.maximum.reduceat(rows.words, rows.cu_seqlens[:-1]) + 1
    words = np.where(rows.special, -1, rows.words + side * num_words[rows.row_of_token - side])
    return replace(
        rows,
        cu_seqlens=rows.cu_seqlens[::2].copy(),
        words=words.astype(np.int32),
        segments=side.astype(np.int8),
        row_ids=rows.row_ids[::2].copy(),
    )


def _context(rows: TokenRows) -> BatchContext:
    return BatchContext(keys=keyed.row_keys(seed=0, epoch=0, row_ids=rows.row_ids))


def _without_offsets(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "offset_mapping"}


def _padded(line: dict[str, Any]) -> dict[str, Any]:
    size = len(line["input_ids"])
    missing = synthetic.MAX_LENGTH - size
    return {
        "input_ids": line["input_ids"] + [0] * missing,
        "special_tokens_mask": line["special_tokens_mask"] + [1] * missing,
        "offset_mapping": line["offset_mapping"] + [[0, 0]] * missing,
        "attention_mask": [1] * size + [0] * missing,
    }


def _speed(collate: Callable[..., Any], calls: list[tuple[Any, ...]], num_tokens: int) -> float:
    began = time.process_time()  # One thread: what other processes take does not count.
    for arguments in calls:
        collate(*arguments)
    return num_tokens / (time.process_time() - began)


if __name__ == "__main__":
    main()
