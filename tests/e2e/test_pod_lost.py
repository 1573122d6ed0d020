"""A pod is killed while clients stream: each of them has the answer that it would have had."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
import psutil

from tests.e2e.running import FOREBAY, HANG, Stack, Up, wait_until_ready

CLIENTS, TOKENS, SEEN = 50, 40, 8
"""How many clients there are, how many tokens each asks for, and after how many of each the pod is killed."""
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
    {
        "messages": [{"role": "user", "content": f"{PROMPTS[number % len(PROMPTS)]} ({number})"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,  # so that all of them run when the pod is killed
        **RULES[number % len(RULES)],
    }
    for number in range(CLIENTS)
]


@dataclass(frozen=True)
class Answer:
    """What a client got; its errors are part of it."""

    text: str
    finish: list[str]
    tokens: int
    heads: int
    end: str


def ask(
    stack: Stack, request: dict[str, Any], on_chunk: Callable[[int], None] = lambda _: None, name: str = "whole"
) -> Answer:
    """Streams an answer; tells how many chunks have come each time that one has."""
    body = {"model": stack.model, "stream": True, "stream_options": {"include_usage": True}, **request}
    headers = {"Authorization": f"Bearer {stack.key}", "Cache-Control": "no-store", "X-Request-Id": name}
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


def log_in(stack: Stack) -> str:
    """An access token of the administrator."""
    login = {"username": stack.admin_username, "password": stack.admin_password}
    return str(httpx2.post(f"{stack.url}/login", json=login, timeout=HANG).json()["access_token"])


def ledger(stack: Stack, token: str, names: list[str]) -> list[list[dict[str, Any]]]:
    """The ledger's rows of each of these requests, once all of them are there."""
    deadline, rows = time.monotonic() + HANG, list[list[dict[str, Any]]]()
    with httpx2.Client(base_url=stack.url, headers={"Authorization": f"Bearer {token}"}, timeout=HANG) as client:
        for name in names:
            while (got := client.get(f"/admin/requests/{name}")).status_code == 404:
                assert time.monotonic() < deadline
                time.sleep(0.1)  # it is written when the last byte has gone
            assert got.status_code == 200, got.text
            rows.append(got.json()["data"])
    return rows


def explain(stack: Stack, token: str, name: str) -> str:
    """What `forebay explain` says of a request."""
    command = (*FOREBAY, "explain", name)
    environment = {**stack.up.environment, "FOREBAY_ADMIN_KEY": token}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_clients_of_a_pod_that_is_killed_get_their_whole_answers(start_up: Callable[..., Up]) -> None:
    # All of them are computed at a time, twice over, and then on what is left: that may take its time.
    stack = wait_until_ready(start_up(pods=2, max_batch=CLIENTS, request_timeout=HANG))
    with ThreadPoolExecutor(CLIENTS) as clients:
        unbroken = list(clients.map(lambda request: ask(stack, request), REQUESTS))
    pid = next(row["pid"] for row in stack.up.status()["processes"] if row["name"] == "pod-2")
    tokens_before = metric(stack.up, *GENERATED)

    under_way, left = threading.Event(), [CLIENTS]
    lock = threading.Lock()

    def count(chunks: int) -> None:
        if chunks == SEEN:
            with lock:
                left[0] -= 1
            if not left[0]:
                under_way.set()

    names = [f"client-{number}" for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as clients:
        running = [
            clients.submit(ask, stack, request, count, name) for request, name in zip(REQUESTS, names, strict=True)
        ]
        assert under_way.wait(HANG)
        kill(pid)
        answers = [one.result(HANG) for one in running]

    assert answers == unbroken
    assert {(answer.tokens, answer.heads, answer.end) for answer in answers} == {(TOKENS, 1, "[DONE]")}
    resumed = metric(stack.up, "forebay_gateway_streams_resumed_total")
    assert CLIENTS / 5 < resumed < CLIENTS, "the pod had its part of them, whichever that was"
    token = log_in(stack)
    rows = ledger(stack, token, names)
    assert [len(found) for found in rows] == [1] * CLIENTS, "each is in the ledger once"
    assert {(row["outcome"], row["completion_tokens"]) for (row,) in rows} == {("ok", TOKENS)}
    assert sum(row["resumes"] for (row,) in rows) == resumed
    assert metric(stack.up, *GENERATED) == tokens_before + TOKENS * CLIENTS
    moved = next(row["request_id"] for (row,) in rows if row["resumes"])
    assert "went on at another pod in mid-answer once" in explain(stack, token, moved)
    assert "Traceback" not in (stack.up.home / "logs" / "gateway-1.log").read_text()
