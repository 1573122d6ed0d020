"""`forebay bench`: loads an OpenAI-compatible endpoint with streaming clients and says what they saw.

Closed loop: each of N clients sends its next request when the last one has ended, so N is the concurrency. Counts are
the server's own (`stream_options.include_usage`); times are the client's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from forebay import checks, state
from services.common.settings import CommonSettings

COLUMNS = ("clients", "requests", "tokens/s", "TTFT p50", "TTFT p95", "per token p50", "per token p95")
PROMPTS = (
    "Explain in plain words how a water wheel turns the flow of a river into useful work.",
    "Write a short note to a new colleague about how our team reviews each other's changes.",
    "List the steps for baking a simple loaf of bread, from flour to the cooled loaf.",
    "Describe what happens to a request from the moment a user presses enter to the answer.",
    "Give three reasons why a small company may want to run its own servers, and three against it.",
    "Tell the story of a lighthouse keeper who finds a message in a bottle on a winter morning.",
    "Summarise the main differences between a library and a framework for a beginner.",
    "What should one check before driving a car that has stood still for a whole year?",
)


class BenchFailed(Exception):
    """The endpoint cannot be measured; the message says why."""


@dataclass(frozen=True)
class Target:
    """The endpoint: `url` is its base, with or without `/v1`."""

    url: str
    key: str
    model: str
    max_tokens: int
    timeout: float = 300.0

    def connect(self) -> HTTPConnection:
        """A new connection to it."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=self.timeout)

    def path(self, route: str) -> str:
        """The path of one of OpenAI's routes, such as `/chat/completions`."""
        return urlsplit(self.url).path.rstrip("/").removesuffix("/v1") + "/v1" + route


@dataclass(frozen=True)
class Sample:
    """What one request showed. Times in seconds."""

    ttft: float
    duration: float
    tokens: int

    @property
    def per_token(self) -> float | None:
        """Mean time between tokens after the first."""
        return (self.duration - self.ttft) / (self.tokens - 1) if self.tokens > 1 else None


@dataclass(frozen=True)
class Result:
    """What all requests of one concurrency showed. Times in seconds."""

    clients: int
    requests: int
    tokens_per_second: float
    ttft_p50: float
    ttft_p95: float
    per_token_p50: float
    per_token_p95: float

    @classmethod
    def of(cls, clients: int, samples: Sequence[Sample], wall: float) -> Result:
        """
        Args:
            wall: from the first request's start to the last one's end.
        """
        ttft = sorted(sample.ttft for sample in samples)
        between = sorted(time for sample in samples if (time := sample.per_token) is not None) or [0.0]
        return cls(
            clients=clients,
            requests=len(samples),
            tokens_per_second=sum(sample.tokens for sample in samples) / wall,
            ttft_p50=quantile(ttft, 0.5),
            ttft_p95=quantile(ttft, 0.95),
            per_token_p50=quantile(between, 0.5),
            per_token_p95=quantile(between, 0.95),
        )

    def row(self) -> dict[str, Any]:
        return asdict(self)


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of the sorted `values` lie, interpolated."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[round(part * 100) - 1]


def measure(target: Target, clients: int, requests: int) -> Result:
    """Sends `requests` requests from `clients` clients at a time.

    Raises:
        BenchFailed: the endpoint refused a request or broke off.
    """
    pending = iter(range(requests))
    lock = threading.Lock()
    samples: list[Sample] = []
    failures: list[BaseException] = []

    def client() -> None:
        while not failures:
            with lock:
                number = next(pending, None)
            if number is None:
                return
            try:
                sample = ask(target, prompt(number), temperature=1.0)
            except (BenchFailed, OSError, HTTPException, ValueError) as error:
                failures.append(error)
                return
            samples.append(sample)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise BenchFailed(f"{target.url}: {failures[0]}")
    return Result.of(clients, samples, time.monotonic() - begin)


def ask(target: Target, text: str, **sampling: Any) -> Sample:
    """One streamed chat of one message; `sampling` are more fields of its body."""
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": target.max_tokens,
        **sampling,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
    connection = target.connect()
    begin = time.monotonic()
    try:
        connection.request("POST", target.path("/chat/completions"), json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise BenchFailed(f"answered {response.status}: {response.read(500).decode(errors='replace').strip()}")
        first, tokens = None, 0
        for chunk in chunks(response):
            if "error" in chunk:
                raise BenchFailed(str(chunk["error"].get("message")))
            if first is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
                first = time.monotonic()
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
        end = time.monotonic()
    finally:
        connection.close()
    return Sample((first or end) - begin, end - begin, tokens)


def prompt(number: int) -> str:
    """The prompt of request `number`; it differs from all others, so that no cache answers it."""
    return f"({number}) {PROMPTS[number % len(PROMPTS)]}"


def chunks(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON chunks of a stream."""
    for line in response:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield json.loads(line[6:])


def table(results: Sequence[Result], *, heading: bool = True) -> str:
    """The results as aligned text; times in milliseconds."""
    rows = [
        (
            str(result.clients),
            str(result.requests),
            f"{result.tokens_per_second:.1f}",
            *(
                f"{seconds * 1000:.0f} ms" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"
                for seconds in (result.ttft_p50, result.ttft_p95, result.per_token_p50, result.per_token_p95)
            ),
        )
        for result in results
    ]
    lines = [COLUMNS, *rows] if heading else rows
    return "\n".join(
        "  ".join(cell.rjust(max(len(name), 8)) for name, cell in zip(COLUMNS, line, strict=True)) for line in lines
    )


def run(options: argparse.Namespace) -> int:
    """The command: measures the endpoint at each number of clients and prints what they saw.

    Raises:
        BenchFailed: there is no endpoint, or it cannot be measured.
    """
    target = find_target(options)
    results = []
    for clients in options.clients:
        results.append(measure(target, clients, clients * options.requests))
        if not options.json:
            print(table(results[-1:], heading=len(results) == 1), flush=True)
    if options.json:
        figures = {"url": target.url, "model": target.model, "results": [result.row() for result in results]}
        print(json.dumps(figures, indent=2))
    return 0


def find_target(options: argparse.Namespace) -> Target:
    """The endpoint that the options name, else the stack that runs here, with its first model."""
    url, key = options.url, options.key or os.environ.get("FOREBAY_API_KEY")
    if url is None:
        running = state.read_status(state.Home(checks.read_settings(CommonSettings).home.expanduser().resolve()))
        if running is None:
            raise BenchFailed("no stack runs here: start one with `forebay up`, or name an endpoint with --url")
        url = running["endpoint"]
        key = key or Path(running["key_file"]).read_text().strip()
    if key is None:
        raise BenchFailed("name the endpoint's key with --key or FOREBAY_API_KEY")
    return Target(url, key, options.model or first_model(url, key), options.tokens)


def first_model(url: str, key: str) -> str:
    """The first model that the endpoint lists."""
    target = Target(url, key, model="", max_tokens=0)
    connection = target.connect()
    try:
        connection.request("GET", target.path("/models"), headers={"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise BenchFailed(f"{url} answered {response.status} for its models")
        return str(json.loads(body)["data"][0]["id"])
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        raise BenchFailed(f"{url}: {error}") from error
    finally:
        connection.close()
