"""transformers' `generate`, one prompt after the other: what everyone has before they have a server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.engine.contenders import Answer, Generate, Model, Prompt

SETTINGS: dict[str, dict[str, Any]] = {"fp32": {}}


@contextmanager
def start(model: Model) -> Iterator[Generate]:
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    from bench.generate import Stamps  # noqa: PLC0415

    network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    network.generation_config.eos_token_id = None

    def generate(prompts: list[Prompt], tokens: int) -> list[Answer]:
        begin = time.monotonic()
        answers = []
        for prompt in prompts:
            stamps = Stamps()
            ids = torch.tensor([prompt.ids])
            with torch.inference_mode():
                output = network.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    do_sample=False,
                    pad_token_id=0,
                    streamer=stamps,
                )
            # The first stamp is the prompt.
            answers.append(Answer(output.shape[1] - len(prompt.ids), stamps.times[1] - begin))
        return answers

    yield generate
