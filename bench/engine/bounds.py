"""What this machine could do at best: how fast it reads memory, and how fast it multiplies.

At one request a step reads every weight once and computes little, so memory is the bound; in a large batch it is the
arithmetic. Both are measured here with torch's own kernels, on operands of a size that suits them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.engine.contenders import Model
from bench.engine.worker import answer

SIDE = 2048
ROWS = 16384
"""A gigabyte of matrix, that no cache holds."""
TRIES = 7


def measure(model: Model) -> dict[str, Any]:
    """
    Returns:
        weights: how many the model has. bandwidth: bytes read a second. products: multiplications and additions a
        second, by quantization.
    """
    import torch  # noqa: PLC0415

    matrix, vector = torch.ones(ROWS, ROWS), torch.ones(ROWS)
    left = torch.randn(SIDE, SIDE)
    int8 = torch.randint(-100, 100, (SIDE, SIDE), dtype=torch.int8)
    operations = 2 * SIDE**3
    return {
        "weights": sum(map(count_weights, model.folder.glob("*.safetensors"))),
        "bandwidth": matrix.nbytes / best(lambda: matrix @ vector),
        "products": {
            "none": operations / best(lambda: left @ left),
            "int8": operations / best(lambda: torch._int_mm(int8, int8)),
        },
    }


def best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some tries, after one that does not count."""
    work()
    times = []
    for _ in range(TRIES):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def count_weights(file: Path) -> int:
    """Numbers that a safetensors file holds, from its header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


if __name__ == "__main__":
    answer(measure)
