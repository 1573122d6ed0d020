"""What a stream says on its way through the gateway: counts, text for the cache, how it ended.

The hot path: it runs for every chunk of every stream. A chunk's JSON is parsed only where the answer may be cached.
"""

from __future__ import annotations

import time
from typing import Any

from pydantic_core import from_json

from services.common.sse import Event
from services.common.wire import Usage
from services.gateway.call import Call, Spent
from services.gateway.ending import routed
from services.gateway.upstreams.exchange import Broken

THE_PODS_OWN = (b'"code":"upstream_unavailable"', b'"code":"out_of_memory"')
"""Errors of a stream that lie with its pod, which shuts down or is short of memory, so that another pod can go on."""


class GivenUp(Broken):
    """The pod ended the stream with an error of its own."""

    def __init__(self, event: Event) -> None:
        super().__init__("it gave the stream up")
        self.event = event


def observe(event: Event, call: Call, spent: Spent) -> bool:
    """Writes down what `event` says of the call; returns whether it goes on to the client.

    Raises:
        GivenUp: it is an error that another pod need not have.
    """
    note = event.note
    if note is not None:
        spent.prompt_tokens = note.get("prompt_tokens", spent.prompt_tokens)
        spent.completion_tokens = note.get("completion_tokens", spent.completion_tokens)
        spent.leg_seconds = note.get("compute_seconds", spent.leg_seconds)
    data = event.data
    if data is None:
        return False
    if event.done:
        spent.outcome = "ok"
    elif _is_usage(data):
        spent.usage = usage_of(data)
        return call.request.wants_usage
    elif data.startswith(b'{"error"'):
        if any(code in data for code in THE_PODS_OWN):
            raise GivenUp(event)
        spent.outcome = "timeout" if b'"deadline_exceeded"' in data else "upstream_error"
        event.data = routed(data, spent.route)
    else:
        if note is not None:
            spent.token_ids.extend(note.get("token_ids", ()))
        if spent.first_token_at is None and (note is None or spent.completion_tokens):
            spent.first_token_at = time.monotonic()
        if call.keep and call.request.deterministic:
            _keep_text(data, spent)
    return True


def usage_of(body: bytes) -> Usage | None:
    """The usage that a body or chunk carries, None when it has none."""
    try:
        return Usage.of(from_json(body).get("usage"))
    except (ValueError, AttributeError):
        return None


def _is_usage(data: bytes) -> bool:
    return b'"choices":[]' in data or b'"choices": []' in data


def _keep_text(data: bytes, spent: Spent) -> None:
    """Collects a chunk's text for the response cache; anything but plain text makes the answer uncacheable."""
    chunk: dict[str, Any] = from_json(data)
    for choice in chunk.get("choices", ()):
        delta = choice.get("delta", {})
        if any(value for name, value in delta.items() if name not in {"role", "content"}):
            spent.cacheable = False
        spent.text.append(delta.get("content") or choice.get("text") or "")
        spent.finish = choice.get("finish_reason") or spent.finish
