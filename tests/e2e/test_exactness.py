"""Through gateway, HTTP and continuous batch, greedy text is what transformers' `generate` says, token for token."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.running import Stack

PROMPTS = [
    "What is a forebay?",
    "Write a haiku about rain.",
    "Why is the sky blue?",
    "Translate 'good morning' into French.",
    "What is 17 times 3?",
    "Name a fruit that is red.",
    "Explain recursion to a child.",
    "Who wrote Hamlet?",
    "List three prime numbers.",
    "What does an engineer do all day?",
    "Write a SQL query that counts users.",
    "Give me a synonym for happy.",
    "How do birds fly?",
    "Was ist die Hauptstadt von Österreich?",
    "用一句话介绍北京。",
    "Tell me a joke about computers 🙂",
    "def fibonacci(n):",
    "What should I cook tonight with eggs and rice?",
    "Summarise the plot of Cinderella.",
    "x",
]
TOKENS = 32


@pytest.fixture(scope="module")
def expected(model_folder: Path) -> list[str]:
    """What `generate` says to each prompt, alone."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    texts = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        texts.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def test_greedy_text_through_the_whole_stack_is_that_of_generate(stack: Stack, expected: list[str]) -> None:
    def ask(prompt: str) -> str:
        body = {
            "model": stack.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": TOKENS,
            "temperature": 0,
        }
        headers = {"Authorization": f"Bearer {stack.key}", "Cache-Control": "no-store"}
        answer = httpx2.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers, timeout=120)
        return str(answer.json()["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(ask, PROMPTS))
    assert together == expected
