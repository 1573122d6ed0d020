"""What `helm test` runs: a chat and a stream from each model through the gateway, and a request with a wrong key.

Runs in the gateway's image; needs only Python. Each line says what was seen; the exit status is 0 when all of it was
right.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WRONG_KEY = "fb-aaaaaaaa-" + "A" * 43
TIMEOUT = 120.0
"""Seconds for one answer: a model on a CPU may be slow, and its first answer slower."""


class Unexpected(Exception):
    """What was seen is not what should be; says it in one sentence."""


class Client:
    """The gateway, with a key."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._key = key

    def call(self, path: str, body: dict[str, Any] | None = None, *, key: str | None = None) -> tuple[int, str]:
        """Status and text of the answer, also of a refusal.

        Raises:
            OSError: nothing answers.
        """
        request = urllib.request.Request(  # noqa: S310 - the operator names the URL
            f"{self._url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key or self._key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


def question(model: str, *, stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Say hello."}]
    return {"model": model, "messages": messages, "max_tokens": 8, "stream": stream}


def wait_for_models(client: Client, models: Sequence[str], seconds: float) -> str:
    """Waits until the gateway lists every model."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            status, text = client.call("/v1/models")
            listed = {row["id"] for row in json.loads(text)["data"]} if status == 200 else set()
            seen = f"it answers {status} and lists {', '.join(sorted(listed)) or 'none'}"
        except OSError as error:
            listed, seen = set(), f"it does not answer: {error}"
        if listed.issuperset(models):
            return f"lists {', '.join(models)}"
        if time.monotonic() > deadline:
            raise Unexpected(f"the gateway does not have every model after {seconds:.0f} s; {seen}")
        time.sleep(2)


def chat(client: Client, model: str) -> str:
    status, text = client.call("/v1/chat/completions", question(model, stream=False))
    if status != 200:
        raise Unexpected(f"status {status}: {text[:500]}")
    answer = json.loads(text)
    tokens = answer["usage"]["completion_tokens"]
    if not answer["choices"][0]["message"]["content"] or not tokens:
        raise Unexpected(f"an empty answer: {text[:500]}")
    return f"{tokens} tokens"


def stream(client: Client, model: str) -> str:
    status, text = client.call("/v1/chat/completions", question(model, stream=True))
    if status != 200:
        raise Unexpected(f"status {status}: {text[:500]}")
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":
        raise Unexpected(f"the stream has no end: {text[-500:]}")
    chunks = [json.loads(line) for line in lines[:-1]]
    if not any(choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]):
        raise Unexpected(f"the stream has no text: {text[:500]}")
    return f"{len(chunks)} chunks and an end"


def wrong_key(client: Client, model: str) -> str:
    status, text = client.call("/v1/chat/completions", question(model, stream=False), key=WRONG_KEY)
    if status != 401:
        raise Unexpected(f"status {status} where 401 should be: {text[:500]}")
    return "refused with 401"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit status 0 when everything was right, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the gateway")
    parser.add_argument("--key-file", type=Path, required=True, help="file with a good API key")
    parser.add_argument("--model", action="append", default=[], help="a model that must answer; may be repeated")
    parser.add_argument("--wait", type=float, default=300, help="seconds to wait for the models")
    options = parser.parse_args(arguments)
    client = Client(options.url, options.key_file.read_text().strip())
    steps: list[tuple[str, Callable[[], str]]] = [
        ("models", lambda: wait_for_models(client, options.model, options.wait))
    ]
    for model in options.model:
        steps.append((f"chat with {model}", functools.partial(chat, client, model)))
        steps.append((f"stream from {model}", functools.partial(stream, client, model)))
    steps.append(("wrong key", lambda: wrong_key(client, next(iter(options.model), "any"))))
    failed = 0
    for title, step in steps:
        try:
            sys.stdout.write(f"ok    {title}: {step()}\n")
        except (Unexpected, OSError, ValueError, KeyError, LookupError) as error:
            failed += 1
            sys.stdout.write(f"WRONG {title}: {error}\n")
            if title == "models":
                break
    sys.stdout.write(f"{'failed' if failed else 'passed'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
