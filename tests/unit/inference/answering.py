"""Asking a pod without a server, and reading what it says."""

from __future__ import annotations

import collections
import json
from typing import Any

from flask.testing import FlaskClient

from services.common import sse

MODEL = "tiny-llama"
HI = [{"role": "user", "content": "Hi"}]


def chat(client: FlaskClient, **more: Any) -> Any:
    return client.post("/v1/chat/completions", json={"model": MODEL, "messages": HI, "max_tokens": 6} | more)


def complete(client: FlaskClient, **more: Any) -> Any:
    return client.post("/v1/completions", json={"model": MODEL, "prompt": "Hi", "max_tokens": 6} | more)


def events(response: Any) -> list[sse.Event]:
    return list(sse.Parser().feed(response.data))


def bodies(response: Any) -> list[dict[str, Any]]:
    """The JSON of a stream's chunks."""
    return [json.loads(event.data or b"") for event in events(response) if not event.done]


def notes(response: Any) -> list[dict[str, Any]]:
    return [event.note for event in events(response) if event.note]


def texts(chunks: list[dict[str, Any]]) -> dict[int, str]:
    """What a stream's chunks say, by choice."""
    found: dict[int, str] = collections.defaultdict(str)
    for chunk in chunks:
        for choice in chunk["choices"]:
            found[choice["index"]] += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
    return dict(found)


def said(response: Any) -> list[str]:
    """The texts of a whole answer's choices."""
    return [
        choice["message"]["content"] if "message" in choice else choice["text"] for choice in response.json["choices"]
    ]


def counts(usage: dict[str, Any]) -> tuple[int, int, int]:
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]
