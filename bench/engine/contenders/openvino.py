"""OpenVINO GenAI's continuous batching, which reads the GGUF file itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.engine.contenders import Answer, Generate, Model, Prompt

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {"properties": {}},
    "float32": {"properties": {"INFERENCE_PRECISION_HINT": "f32"}},
    "bfloat16": {"properties": {"INFERENCE_PRECISION_HINT": "bf16"}},
}


@contextmanager
def start(model: Model, *, properties: dict[str, str]) -> Iterator[Generate]:
    import numpy as np  # noqa: PLC0415
    import openvino  # noqa: PLC0415
    import openvino_genai as genai  # noqa: PLC0415

    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = 2048
    scheduler.enable_prefix_caching = False
    scheduler.cache_size = 1
    pipeline = genai.ContinuousBatchingPipeline(str(model.file), scheduler, "CPU", properties)

    def generate(prompts: list[Prompt], tokens: int) -> list[Answer]:
        config = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        inputs = [openvino.Tensor(np.array([prompt.ids], dtype=np.int64)) for prompt in prompts]
        results = pipeline.generate(inputs, [config] * len(prompts))
        return [Answer(len(result.m_generation_ids[0]), None) for result in results]

    yield generate
