"""What quantization costs: the perplexity of a fixed text, computed by the engine's own decode steps.

`declaration.txt` is the United States Declaration of Independence (1776), which is in the public domain.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bench.engine.contenders import Model
from bench.engine.contenders.forebay import pod_settings
from bench.engine.worker import answer

TEXT = Path(__file__).with_name("declaration.txt")
WINDOW = 256
"""Tokens that are read with their own past only, so that the whole text is one batch of windows."""


def measure(model: Model, **options: Any) -> dict[str, Any]:
    """
    Args:
        options: settings of the pod, such as quantization.
    """
    settings = pod_settings(**options)
    import torch  # noqa: PLC0415

    from services.inference.engine.load import load  # noqa: PLC0415
    from services.inference.engine.schedule import Work  # noqa: PLC0415
    from services.inference.engine.sequence import Sequence  # noqa: PLC0415

    loaded = load(str(model.folder), settings)
    ids = loaded.tokenizer(TEXT.read_text(), add_special_tokens=False).input_ids
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    sequences = [Sequence([], 0, WINDOW, blocks=loaded.pool.take(loaded.pool.blocks_for(WINDOW))) for _ in windows]
    loss, count = 0.0, 0
    for position in range(WINDOW - 1):
        reading = [(s, w) for s, w in zip(sequences, windows, strict=True) if position + 1 < len(w)]
        for sequence, window in reading:
            sequence.ids.append(window[position])
        logits = loaded.runner.forward([Work(sequence, 1) for sequence, _ in reading])
        for sequence, _ in reading:
            sequence.computed += 1
        following = torch.tensor([window[position + 1] for _, window in reading])
        loss += torch.nn.functional.cross_entropy(logits.double(), following, reduction="sum").item()
        count += len(reading)
    return {"perplexity": math.exp(loss / count), "tokens": count}


if __name__ == "__main__":
    answer(measure)
