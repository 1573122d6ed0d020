"""llama.cpp by way of `llama-cpp-python`: its low-level batch of sequences, on the GGUF file as it is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.engine.contenders import Answer, Generate, Model, Prompt

SETTINGS: dict[str, dict[str, Any]] = {
    f"{'flash' if flash else 'plain'} attention, {'one cache' if unified else 'a cache for each sequence'}": {
        "flash": flash,
        "unified": unified,
    }
    for flash in (True, False)
    for unified in (True, False)
}
SEQUENCES = 16
CONTEXT = SEQUENCES * 192


@contextmanager
def start(model: Model, *, flash: bool, unified: bool) -> Iterator[Generate]:
    import llama_cpp as llama  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    llama.llama_backend_init()
    network = llama.llama_model_load_from_file(str(model.file).encode(), llama.llama_model_default_params())
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = CONTEXT
    parameters.n_seq_max = SEQUENCES
    parameters.n_batch = CONTEXT
    parameters.n_threads = parameters.n_threads_batch = os.cpu_count()
    parameters.flash_attn_type = int(flash)
    parameters.kv_unified = unified
    context = llama.llama_init_from_model(network, parameters)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(network))
    batch = llama.llama_batch_init(CONTEXT, 0, 1)

    def forward(parts: list[list[int]], positions: list[int]) -> list[int]:
        """Feeds each sequence its part, which begins at its position; returns the likeliest token after each."""
        row = 0
        for number, (part, position) in enumerate(zip(parts, positions, strict=True)):
            for offset, token in enumerate(part):
                batch.token[row], batch.pos[row] = token, position + offset
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, number
                batch.logits[row] = offset == len(part) - 1
                row += 1
        batch.n_tokens = row
        if llama.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        logits = np.ctypeslib.as_array(llama.llama_get_logits(context), (len(parts), vocabulary))
        likeliest: list[int] = logits.argmax(-1).tolist()
        return likeliest

    def generate(prompts: list[Prompt], tokens: int) -> list[Answer]:
        llama.llama_memory_clear(llama.llama_get_memory(context), False)
        begin = time.monotonic()
        positions = [len(prompt.ids) for prompt in prompts]
        fresh = forward([prompt.ids for prompt in prompts], [0] * len(prompts))
        first = time.monotonic() - begin
        for _ in range(tokens - 1):
            fresh = forward([[token] for token in fresh], positions)
            positions = [position + 1 for position in positions]
        return [Answer(tokens, first)] * len(prompts)

    try:
        yield generate
    finally:
        llama.llama_batch_free(batch)
        llama.llama_free(context)
        llama.llama_model_free(network)
