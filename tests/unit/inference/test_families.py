"""Any architecture computes in a packed, paged batch what it computes by itself, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.common.settings import InferenceSettings
from services.inference.engine.errors import UnsupportedModel
from services.inference.engine.load import Loaded, load
from services.inference.engine.sample import sample
from services.inference.engine.schedule import Scheduler
from services.inference.engine.sequence import Sampling, Sequence
from tests.unit.inference.tiny import save_tiny

PROMPTS = [[3, 14, 15, 92, 65], list(range(40, 75)), [7], [100 + i % 9 for i in range(20)]]
ANSWER = 12
ATTENTION_ONLY = ["llama", "qwen3", "gemma3_text", "gemma2", "deepseek_v3", "gpt2", "gpt_oss"]


def greedy(loaded: Loaded, prompts: list[list[int]], *, step_tokens: int = 512) -> list[list[int]]:
    """What the engine's parts generate when all prompts come at once."""
    scheduler = Scheduler(loaded.pool, max_batch=len(prompts), step_tokens=step_tokens)
    sequences = [Sequence(list(ids), len(ids), ANSWER, Sampling(temperature=0)) for ids in prompts]
    for one in sequences:
        scheduler.add(one)
    while scheduler.busy:
        plan = scheduler.plan()
        rows = [work.sequence for work in plan if work.samples]
        tokens = [draw.token for draw in sample(loaded.runner.forward(plan), rows)]
        scheduler.commit(plan, tokens)
        for one in rows:
            if one.generated == ANSWER:
                scheduler.remove(one)
    return [one.ids[one.prompt_length :] for one in sequences]


def reference(folder: Path, prompt: list[int]) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([prompt])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False, pad_token_id=0
    )
    return made[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ATTENTION_ONLY)
def test_a_packed_batch_generates_what_the_model_generates_alone(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / family, family)
    loaded = load(str(folder), InferenceSettings(kv_blocks=64, device="cpu"))
    expected = [reference(folder, prompt) for prompt in PROMPTS]
    assert greedy(loaded, PROMPTS) == expected
    assert [greedy(loaded, [prompt])[0] for prompt in PROMPTS] == expected
    assert greedy(loaded, PROMPTS, step_tokens=7) == expected, "in chunks"


def test_output_is_unchanged_when_memory_runs_out_and_requests_are_preempted(tiny_folder: Path) -> None:
    loaded = load(str(tiny_folder), InferenceSettings(kv_blocks=4, device="cpu"))
    prompts = [[3, 14, 15, 9], [26, 5, 35, 8], [97, 9, 32, 3], [84, 6, 26, 4]]
    assert greedy(loaded, prompts) == [greedy(loaded, [prompt])[0] for prompt in prompts]


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "mamba", "mamba2")
    with pytest.raises(UnsupportedModel, match="mamba2"):
        load(str(folder), InferenceSettings(kv_blocks=64, device="cpu"))
