"""One question of a call to a model beside the pods: the one that moderates, the one that tells what a text means."""

from __future__ import annotations

import json
import time
from typing import Any

from pydantic import SecretStr

from services.common import sse
from services.common.telemetry import REQUEST_ID_HEADER, TRACE_HEADER
from services.gateway.call import Call
from services.gateway.upstreams.exchange import BACKSTOP, Exchange, Pool


def ask(pool: Pool, path: str, question: dict[str, Any], *, call: Call, key: SecretStr | None, timeout: float) -> Any:
    """The JSON that is answered to `question`, within `timeout` seconds and what is left of the call's own time.

    Raises:
        Unreachable, Broken, TimeoutError: there was no answer, or not in time.
        ValueError: the answer is not 200, or no JSON.
    """
    headers = {
        "Content-Type": "application/json",
        REQUEST_ID_HEADER: call.request_id,
        TRACE_HEADER: call.traceparent,
    }
    if key is not None:
        headers["Authorization"] = f"Bearer {key.get_secret_value()}"
    exchange = Exchange(pool, time.monotonic() + min(timeout, call.remaining()) - BACKSTOP)
    try:
        response = exchange.send("POST", path, headers, sse.dump(question))
        answer = exchange.read()
    finally:
        exchange.close()
    if response.status != 200:
        raise ValueError(f"status {response.status}")
    return json.loads(answer)
