"""transformers' own continuous batching, `generate_batch`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.engine.contenders import Answer, Generate, Model, Prompt

# Seen on CPU: other sizes of pages and steps make no difference, and compiled it is eight times slower.
SETTINGS: dict[str, dict[str, Any]] = {
    f"{attention}, pages of {page}": {"attention": attention, "page": page}
    for attention, page in (("sdpa", 256), ("sdpa", 32), ("paged|eager", 256))
}


@contextmanager
def start(model: Model, *, attention: str, page: int) -> Iterator[Generate]:
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig  # noqa: PLC0415

    logging.getLogger("transformers").setLevel(logging.ERROR)
    network = AutoModelForCausalLM.from_pretrained(
        model.folder, dtype=torch.float32, attn_implementation=attention
    ).eval()
    network.generation_config.eos_token_id = None
    config = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=4096 // page,
        max_batch_tokens=1024,
        use_cuda_graph=False,
        use_async_batching=False,
    )

    def generate(prompts: list[Prompt], tokens: int) -> list[Answer]:
        begin = time.perf_counter()  # the clock of its time stamps
        outputs = network.generate_batch(
            [prompt.ids for prompt in prompts],
            generation_config=GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=config,
            record_timestamps=True,
            progress_bar=False,
        )
        return [Answer(len(o.generated_tokens), o.timestamps[0] - begin) for o in outputs.values()]

    yield generate
