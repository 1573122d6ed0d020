"""A pod is killed while clients stream: each of them has the answer that it would have had."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
import psutil

from tests.e2e.running import HANG, Stack, Up, wait_until_ready

TOKENS, SEEN = 96, 12
"""How many each client asks for, and after how many of each the pod is killed."""
GENERATED = ("gen_ai_client_token_usage_total", 'token_type="output"')
PROMPTS = [
    "Why is the sky blue?",
    "Tell me a joke about computers 🙂",
    "用一句话介绍北京。",
    "def fibonacci(n):",
    "Write a haiku about rain.",
]
RULES: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 11},
    {"temperature": 0, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "frequency_penalty": 0.5, "seed": 12},
]
REQUESTS = [
    # Without an end token, so that all of them run when the pod is killed.
    {"messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS, "ignore_eos": True, **rule}
    for prompt in PROMPTS
    for rule in RULES
]


@dataclass(frozen=True)
class Answer:
    """What a client got; its errors are part of it."""

    text: str
    finish: list[str]
    tokens: int
    heads: int
    end: str


def ask(stack: Stack, request: dict[str, Any], on_chunk: Callable[[int], None] = lambda _: None) -> Answer:
    """Streams an answer; tells how many chunks have come each time that one has."""
    body = {"model": stack.model, "stream": True, "stream_options": {"include_usage": True}, **request}
    headers = {"Authorization": f"Bearer {stack.key}", "Cache-Control": "no-store"}
    data = []
    with httpx2.stream("POST", f"{stack.endpoint}/chat/completions", json=body, headers=headers, timeout=HANG) as got:
        assert got.status_code == 200
        for line in got.iter_lines():
            if line:
                data.append(line.removeprefix("data: "))
                on_chunk(len(data))
    chunks = [json.loads(one) for one in data[:-1]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return Answer(
        "".join(choice["delta"].get("content", "") for choice in choices),
        [choice["finish_reason"] for choice in choices if choice["finish_reason"]],
        chunks[-1]["usage"]["completion_tokens"],
        len({(chunk["id"], chunk["created"]) for chunk in chunks}),
        data[-1],
    )


def metric(up: Up, name: str, label: str = "") -> float:
    """The sum over the gateway's series of that name."""
    url = next(row["metrics_url"] for row in up.status()["processes"] if row["role"] == "gateway")
    with urllib.request.urlopen(url, timeout=HANG) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{") and label in line)


def kill(pid: int) -> None:
    """kill -9 for a server and its workers, as when a host is lost."""
    server = psutil.Process(pid)
    for process in (server, *server.children(recursive=True)):
        process.kill()


def test_clients_of_a_pod_that_is_killed_get_their_whole_answers(start_up: Callable[..., Up]) -> None:
    stack = wait_until_ready(start_up(pods=2))
    with ThreadPoolExecutor(len(REQUESTS)) as clients:
        unbroken = list(clients.map(lambda request: ask(stack, request), REQUESTS))
    pid = next(row["pid"] for row in stack.up.status()["processes"] if row["name"] == "pod-2")
    tokens_before = metric(stack.up, *GENERATED)

    under_way, left = threading.Event(), [len(REQUESTS)]
    lock = threading.Lock()

    def count(chunks: int) -> None:
        if chunks == SEEN:
            with lock:
                left[0] -= 1
            if not left[0]:
                under_way.set()

    with ThreadPoolExecutor(len(REQUESTS)) as clients:
        running = [clients.submit(ask, stack, request, count) for request in REQUESTS]
        assert under_way.wait(HANG)
        kill(pid)
        answers = [one.result(HANG) for one in running]

    assert answers == unbroken
    assert {(answer.tokens, answer.heads, answer.end) for answer in answers} == {(TOKENS, 1, "[DONE]")}
    assert metric(stack.up, "forebay_gateway_streams_resumed_total") == len(REQUESTS) / 2
    expected = tokens_before + TOKENS * len(REQUESTS)
    deadline = time.monotonic() + HANG
    while metric(stack.up, *GENERATED) < expected:  # a request is counted once its last byte has gone
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert metric(stack.up, *GENERATED) == expected
    assert "Traceback" not in (stack.up.home / "logs" / "gateway-1.log").read_text()
