"""Tokenise a made-up text of many lines with the real preparation stage, then plan an epoch over it, and print time and memory.

    python scripts/bench_prepare.py

Words are made of syllables and follow Zipf's law; lines are log-normal, of about 26 tokens on average. Each of the two parts runs
in a process of its own, whose memory (and that of its children) is read from outside, ten times a second. It is what the processes
hold in RAM without the pages of files, which the system takes back when it needs them; with them it is told as well. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import psutil

if __name__ == "__main__":
    os.environ.setdefault("RAYON_NUM_THREADS", str(len(os.sched_getaffinity(0))))

_MEAN_WORDS = 25.0
_SPREAD = 0.6
_NUM_WORDS = 60_000
_CONSONANTS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "ch", "sh", "tr", "st")
_TRAINING_LINES = 100_000
_CHUNK_LINES = 10_000
_SHARES = (0.1, 0.5, 1.0)
_SECONDS_BETWEEN_SAMPLES = 0.1
_BATCH_TOKENS = 32_768
_MEBIBYTE = 2**20
_OFFSET_BYTES = 8

Made = TypeVar("Made")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--algorithm", default="wordpiece", help="of the tokenizer: wordpiece, unigram, bpe, byte or character")
    parser.add_argument("--vocab-size", type=int, default=30_522)
    parser.add_argument("--folder", type=Path, help="where text and arrays go (about 1 KiB a line); by default a temporary folder")
    parser.add_argument("--part", choices=("prepare", "plan"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps({"prepare": _prepare, "plan": _plan}[given.part](given.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="bench_prepare") as temporary:
        folder = given.folder or Path(temporary)
        _make(folder, given)
        _report(folder, given)


def _make(folder: Path, given: argparse.Namespace) -> None:
    """Write the text, the tokenizer and the config of a preparation stage."""
    import synthetic

    from mlmx.build import build
    from mlmx.data.prepare import train_tokenizer
    from mlmx.data.tokenizer import TrainedTokenizer
    from mlmx.stage import StageDir

    text = folder / "corpus.txt"
    with text.open("w", encoding="utf-8") as file:
        file.writelines(_lines(given.lines))
    head = folder / "head.txt"
    with text.open(encoding="utf-8") as file:
        head.write_text("".join(islice(file, _TRAINING_LINES)), encoding="utf-8")
    tokenizer = TrainedTokenizer(
        algorithm=given.algorithm, vocab_size=given.vocab_size, lowercase=False, normalization="nfc", min_count=1
    )
    train_tokenizer(tokenizer, [build(synthetic.node("corpus", "text", path=str(head)))], StageDir(folder / "words").tokenizer_dir)
    spec = {"corpus": synthetic.node("corpus", "text", path=str(text))}
    StageDir(folder / "words").write_config({"parents": {}})
    StageDir(folder / "prepare").write_config({"fingerprint": "bench", "spec": spec, "parents": {"tokenizer": "words"}})


def _lines(num_lines: int) -> Iterator[str]:
    import numpy as np

    random = np.random.default_rng(0)
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in "aeiou"]
    words = np.array(["".join(random.choice(syllables, random.integers(1, 6))) for _ in range(_NUM_WORDS)], dtype=object)
    for start in range(0, num_lines, _CHUNK_LINES):
        size = min(_CHUNK_LINES, num_lines - start)
        lengths = np.clip(random.lognormal(np.log(_MEAN_WORDS) - _SPREAD**2 / 2, _SPREAD, size).round(), 3, 120).astype(int)
        drawn = words[np.minimum(random.zipf(1.2, lengths.sum()) - 1, _NUM_WORDS - 1)]
        position = 0
        for length in lengths:
            yield " ".join(drawn[position : position + length]) + ".\n"
            position += length


def _prepare(folder: Path) -> dict[str, Any]:
    from mlmx.stage import StageDir
    from mlmx.training import worker
    from mlmx.training.parallel import ProcessGroup

    stage = StageDir(folder / "prepare")
    began = time.perf_counter()
    meta = worker.prepare(stage, stage.config()["spec"], ProcessGroup(), None)  # type: ignore[arg-type]
    return {"lines": meta["num_examples"], "pieces": meta["num_pieces"], "seconds": time.perf_counter() - began}


def _plan(folder: Path) -> dict[str, Any]:
    """Open the arrays and deal out the first and the last batch of an epoch."""
    import numpy as np

    from mlmx.data.plan import BatchPlan
    from mlmx.data.rows_from_store import open_rows
    from mlmx.data.store import TokenStore
    from mlmx.data.vocabulary import Vocabulary
    from mlmx.models.load import load_tokenizer
    from mlmx.stage import StageDir

    vocabulary = Vocabulary.from_tokenizer(load_tokenizer(StageDir(folder / "words").tokenizer_dir))
    began = time.perf_counter()
    rows = open_rows(TokenStore.open(StageDir(folder / "prepare").data_dir), vocabulary, view="segment", max_length=128)
    plan = BatchPlan(rows.lengths, seed=0, batch_tokens=_BATCH_TOKENS, epochs=1, weights=rows.weights)
    assert plan.num_steps is not None
    filled = [len(rows.take(np.sort(plan.rows_of(step)[0])).input_ids) for step in (0, plan.num_steps - 1)]
    return {"rows": len(rows), "batches": plan.num_steps, "filled": filled, "seconds": time.perf_counter() - began}


@dataclass(frozen=True, slots=True)
class _Sample:
    done: float
    resident: int
    anonymous: int


def _measured(part: str, folder: Path, share_done: Callable[[], float]) -> tuple[dict[str, Any], list[_Sample]]:
    """Run a part in a process of its own; return what it printed and its memory."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    samples: list[_Sample] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            # What is finished has another name.
            done = max(share_done(), samples[-1].done if samples else 0.0)
            samples.append(_Sample(done, *_memory(process.pid)))
            time.sleep(_SECONDS_BETWEEN_SAMPLES)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(printed.splitlines()[-1]), samples


def _memory(pid: int) -> tuple[int, int]:
    """Return the bytes that a process and its children hold, and how many of these are no pages of files."""
    resident = anonymous = 0
    try:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.endswith(" kB")}
            resident += sizes.get("VmRSS", 0)
            anonymous += sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        pass  # It has just ended.
    return resident, anonymous


def _report(folder: Path, given: argparse.Namespace) -> None:
    import synthetic

    offsets = folder / "prepare" / "data.partial" / "text_offsets.bin"

    def share_done() -> float:
        return offsets.stat().st_size / (_OFFSET_BYTES * given.lines) if offsets.exists() else 0.0

    prepared, samples = _measured("prepare", folder, share_done)
    planned, plan_samples = _measured("plan", folder, lambda: 1.0)
    text_bytes = (folder / "corpus.txt").stat().st_size
    print(
        f"{given.lines:,} lines ({text_bytes / _MEBIBYTE:,.0f} MiB), {given.algorithm}, vocabulary {given.vocab_size:,}, "
        f"{os.environ['RAYON_NUM_THREADS']} threads of {synthetic.hardware()}, {synthetic.versions()}\n"
    )
    print("| | | seconds | peak memory | with pages of files |\n|---|---|---|---|---|")
    speed = f"{prepared['pieces']:,} tokens, {prepared['lines'] / prepared['seconds']:,.0f} lines/s"
    for share in _SHARES[:-1]:
        print(f"| the first {share:.0%} of the lines | | | {_peaks([sample for sample in samples if sample.done <= share])} |")
    print(f"| all lines | {speed} | {prepared['seconds']:,.0f} | {_peaks(samples)} |")
    size = f"{planned['rows']:,} rows, {planned['batches']:,} batches of {_BATCH_TOKENS:,} tokens"
    print(f"| opening the arrays and planning an epoch | {size} | {planned['seconds']:.1f} | {_peaks(plan_samples)} |")


def _peaks(samples: list[_Sample]) -> str:
    peaks = (max(sample.anonymous for sample in samples), max(sample.resident for sample in samples))
    return " | ".join(f"{peak / _MEBIBYTE:,.0f} MiB" for peak in peaks)


if __name__ == "__main__":
    main()
