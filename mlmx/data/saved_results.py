"""Results of batches on the disk, so that an evaluation that was interrupted computes none of them twice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmx.data.arrays import ArrayWriter

_DATA, _HEADERS = "data", "headers"


class SavedResults(Mapping[str, NDArray[Any]]):
    """Key -> result, for what was there when it was opened; what is added since is for whoever opens it next.

    Args:
        folder: where it lies; ``remove`` it when nobody will go on.
        identity: names all that the results come from beside their keys. Results of another identity are dropped.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._writer = ArrayWriter(folder, identity)
        self._data = self._writer.written(_DATA)
        self._places: dict[str, tuple[int, str, list[int]]] = {}
        start = 0
        for line in self._writer.written(_HEADERS).tobytes().splitlines():
            key, dtype, shape = json.loads(line)
            self._places[key] = start, dtype, shape
            start += math.prod(shape) * np.dtype(dtype).itemsize

    def __getitem__(self, key: str) -> NDArray[Any]:
        start, dtype, shape = self._places[key]
        end = start + math.prod(shape) * np.dtype(dtype).itemsize
        return np.frombuffer(self._data[start:end].tobytes(), dtype).reshape(shape)

    def __iter__(self) -> Any:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, key: str, result: NDArray[Any]) -> None:
        """Write a result down; it is safe some seconds later."""
        self._writer.append(_DATA, np.frombuffer(result.tobytes(), np.uint8))
        header = json.dumps([key, result.dtype.str, result.shape]) + "\n"
        self._writer.append(_HEADERS, np.frombuffer(header.encode(), np.uint8))
        self._writer.save_now_and_then(dict)

    def remove(self) -> None:
        """Delete it all."""
        self._writer.remove()

    def close(self) -> None:
        """Leave what is safe to whoever opens it next."""
        self._writer.__exit__(None, None, None)
