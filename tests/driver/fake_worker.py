"""Stands in for the real worker: does what ``spec.behaviour`` says, imports nothing slow."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from mlmx.errors import user_error
from mlmx.stage import StageDir, error_to_json


def main() -> None:
    stage = StageDir(sys.argv[1])
    spec = stage.config()["spec"]
    node = next(value for value in spec.values() if isinstance(value, dict) and "behaviour" in value)
    behaviour = node["behaviour"]
    rank = int(os.environ.get("RANK", 0))
    record = {"pid": os.getpid(), "rank": rank, "size": int(os.environ.get("WORLD_SIZE", 1))}
    with (stage.path / "starts").open("a") as file:
        file.write(json.dumps({**record, "threads": os.environ.get("OMP_NUM_THREADS")}) + "\n")
    print(f"fake worker {rank} at work", flush=True)
    if behaviour == "sleep" and not (stage.path.parent / "quick").exists():
        time.sleep(60)
    if behaviour == "brief":
        time.sleep(1.0)
    if behaviour == "user_error":
        stage.write_status("failed", error=error_to_json(user_error("objective.mask_ratio", "is nonsense.")))
        sys.exit(2)
    if behaviour == "crash" and not (stage.path.parent / "mended").exists():
        print("something went badly wrong", flush=True)
        sys.exit(1)
    if behaviour == "die" and not (stage.path.parent / "mended").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "die_once" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "fill" and not (stage.path.parent / "mended").exists():
        fill(stage)
    if rank == 0:
        finish(stage)


def fill(stage: StageDir) -> None:
    """Write until the disk is full, and keep what was written: there is no room for words then."""
    try:
        with (stage.path / "half_written").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError as error:
        stage.write_status("failed", error=error_to_json(error))
        raise


def finish(stage: StageDir) -> None:
    kind = stage.config()["kind"]
    if kind in ("prepare", "pretrain"):
        folder = stage.data_dir if kind == "prepare" else stage.encoder_dir
        folder.mkdir(exist_ok=True)
        (folder / "numbers.bin").write_bytes(bytes(range(100)))
    scores = [{"task": "bitext", "split": "test", "metric": "f1", "value": 0.5, "num_examples": 10, "higher_is_better": True}]
    stage.write_result({"scores": scores} if kind == "eval" else {"seconds": 0})


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(exist_ok=True)
    main()
