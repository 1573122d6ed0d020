"""The engine's text is the model's text: whoever else is served at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.integration.inference.conftest import chat, completion
from tests.integration.inference.pod import Pod

TOKENS = 20
PROMPTS = [
    "What is the capital of France?",
    "Hi",
    "Write a haiku about rivers.",
    "List the first ten prime numbers, separated by commas.",
    "Translate 'good morning' to Spanish, French and German.",
    "def fibonacci(n):\n    '''Returns the n-th Fibonacci number.'''",
    "请用中文写一句话介绍你自己。",
    "🌊🌊🌊 What do these mean?",
    "Summarise: " + "The forebay holds the water above the turbines and gives them an even flow. " * 12,
    "Why is the sky blue? Answer like a pirate.",
    "1 + 1 =",
    "Once upon a time, in a land far away,",
    "Explain continuous batching to a child.",
    "SELECT name FROM users WHERE",
    "Give me JSON with the keys a, b and c.",
    "¿Cuál es la montaña más alta del mundo?",
    "Repeat the word 'echo' five times.",
    "What comes after Monday?",
    "x" * 50,
    "Tell me a joke about databases.",
]


@pytest.fixture(scope="module")
def expected(reference_model: Any, tokenizer: Any) -> list[list[int]]:
    """What `generate` of transformers makes of each prompt, one by one."""
    found = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        made = reference_model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False
        )
        found.append(made[0, ids.shape[1] :].tolist())
    return found


def greedy(pod: Pod, prompt: str) -> list[int]:
    return pod.stream("/v1/chat/completions", chat(prompt, max_tokens=TOKENS)).ids


def test_greedy_text_alone_is_that_of_generate(pod: Pod, expected: list[list[int]]) -> None:
    assert [greedy(pod, prompt) for prompt in PROMPTS] == expected


def test_greedy_text_in_company_is_that_of_generate(pod: Pod, expected: list[list[int]]) -> None:
    with ThreadPoolExecutor(len(PROMPTS)) as clients:
        assert list(clients.map(lambda prompt: greedy(pod, prompt), PROMPTS)) == expected


def test_a_seed_gives_the_same_text_alone_and_in_company(pod: Pod) -> None:
    def seeded(seed: int) -> str:
        body = completion("The river", max_tokens=16, temperature=1.0, top_p=0.95, seed=seed)
        return pod.post("/v1/completions", body).text

    alone = [seeded(seed) for seed in range(6)]
    with ThreadPoolExecutor(12) as clients:
        together = list(clients.map(seeded, [*range(6), *range(100, 106)]))
    assert together[:6] == alone
    assert len(set(alone)) == 6


def test_another_family_is_loaded_on_demand_and_generates_what_generate_does(pod: Pod, second_folder: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(second_folder, dtype=torch.float32)
    ids = torch.tensor([[5, 77, 300, 12]])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
    body = completion(ids[0].tolist(), model="second", max_tokens=TOKENS)
    assert pod.stream("/v1/completions", body).ids == made[0, 4:].tolist()
    states = {model["id"]: model["state"] for model in pod.get("/v1/models").body["data"]}
    assert states["second"] == "loaded"
