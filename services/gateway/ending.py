"""The event by which a stream tells its client that it ends early: the error's envelope, and in it what an answer that
is not streamed has in its headers, which are gone by then."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from services.common import sse
from services.common.errors import ApiError


def ending(error: ApiError, route: str) -> sse.Event:
    """The error as an event, with its `retry_after`, in seconds, and the call's `route` so far."""
    body = error.envelope()
    if (seconds := error.headers.get("Retry-After")) is not None:
        body["error"]["retry_after"] = float(seconds)
    body["error"]["route"] = route
    return sse.Event(sse.dump(body))


def routed(data: bytes, route: str) -> bytes:
    """A pod's own error event, with the call's route; as it is, where it has another form than ours."""
    try:
        body: Any = from_json(data)
    except ValueError:
        return data
    error = body.get("error")
    return sse.dump({**body, "error": {**error, "route": route}}) if isinstance(error, dict) else data
