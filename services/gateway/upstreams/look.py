"""One look at a pod: whether it takes requests, what it serves, and else what its loading is at."""

from __future__ import annotations

import json
import time
from typing import Any

from services.common.orca import LOAD_FORMAT_HEADER, LOAD_HEADER
from services.gateway.upstreams.exchange import BACKSTOP, Broken, Exchange, Unreachable
from services.gateway.upstreams.upstream import Upstream

LOOK_TIMEOUT = 2.0
"""Seconds that a look may take; a pod of ours answers within hundredths of one at full load."""
HEADERS = {"Accept": "application/json", LOAD_FORMAT_HEADER: "JSON"}
NOT_THERE = (Unreachable, Broken, TimeoutError)
NONSENSE = (ValueError, KeyError, TypeError, AttributeError)
"""What reading a body raises that is none of a pod."""

Models = dict[str, dict[str, Any]]


class NotReady(Exception):
    """The pod takes no requests; `phase` and `models` are what it says of its loading. `silent`: it took the question
    and gave no answer."""

    def __init__(
        self, reason: str, phase: str | None = None, models: frozenset[str] = frozenset(), *, silent: bool = False
    ) -> None:
        super().__init__(reason)
        self.phase = phase
        self.models = models
        self.silent = silent


def look_at(pod: Upstream) -> Models:
    """The models that a pod serves, by name, with what it says of each. Takes its load report on the way.

    Engines other than ours have no `/readyz`; one that lists its models takes requests. While llama.cpp loads, it
    answers 503 there.

    Raises:
        NotReady: it takes no requests, for whatever reason.
    """
    try:
        status, body = _get(pod, "/readyz")
        if status >= 500:
            raise _not_ready(status, body)
        if status == 200 and pod.models and pod.models.keys() == set(json.loads(body).get("models", ())):
            return pod.models
        status, body = _get(pod, "/v1/models")
        if status == 503:
            raise NotReady("/v1/models answers 503", "loading")
        if status != 200:
            raise NotReady(f"/v1/models answers {status}")
        rows = json.loads(body)["data"]
        return {row["id"]: {name: value for name, value in row.items() if name != "id"} for row in rows}
    except (*NOT_THERE, *NONSENSE) as error:
        raise NotReady(f"{type(error).__name__}: {error}", silent=isinstance(error, TimeoutError)) from error


def _not_ready(status: int, body: bytes) -> NotReady:
    try:
        told = json.loads(body)
        models = frozenset(str(name) for name in told.get("models", ()))
        phase = str(told.get("phase") or "loading") if told.get("status") == "loading" else None
        return NotReady(str(told.get("reason") or told.get("status")), phase, models)
    except NONSENSE:
        return NotReady(f"/readyz answers {status}")


def _get(pod: Upstream, path: str) -> tuple[int, bytes]:
    exchange = Exchange(pod.pool, time.monotonic() + LOOK_TIMEOUT - BACKSTOP)
    try:
        response = exchange.send("GET", path, HEADERS)
        body = exchange.read()
        pod.take_report(response.headers.get(LOAD_HEADER), pod.clock())
        return response.status, body
    finally:
        exchange.close()
