"""Answers that lie ready, given before Flask is asked: the same bytes as before, of a caller who is trusted already.

What a body asks follows from its bytes alone, so a digest of them stands for all that reading it gives. Those whose
answer was kept are remembered here, in each process, without their text. The next request with such a body costs one
exchange with Redis, in which it is limited, answered and entered in the ledger, or in which nothing is done, and Flask
has it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from io import BytesIO
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json
from werkzeug.wsgi import ClosingIterator

from services.cache.connection import CacheDown
from services.cache.kept import Kept
from services.cache.responses import salted
from services.cache.windows import Ask, Reservation
from services.common import sse
from services.common.telemetry import REQUEST_ID_HEADER, ROUTE_HEADER, accept_request_id
from services.common.wire import Answer, Kind, Usage
from services.gateway.admit import hit_route, limit_headers, may_use, note_budgets
from services.gateway.identify import Principal
from services.gateway.parts import Gateway
from services.web import edge

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

KINDS: dict[str, Kind] = {"/v1/chat/completions": "chat", "/v1/completions": "text"}
"""The routes that it answers for."""
MEANT = frozenset(
    f"HTTP_{name}"
    for name in (
        "CACHE_CONTROL",
        "CONTENT_ENCODING",
        "IDEMPOTENCY_KEY",
        "LAST_EVENT_ID",
        "TRANSFER_ENCODING",
        "X_FOREBAY_TIMEOUT",
    )
)
"""Headers of requests that are more than their bodies."""
LARGE = 64 * 1024
"""Bytes of a body that is not looked at: its digest would take as long as what it spares."""
MOST = 10_000
"""Bodies that a process remembers, some 4 MB."""
BODY, CALL = "forebay.body", "forebay.call"
"""What Flask is told of a request by its environment: the digest of the body, and the id that the call has already."""

_HEAD = re.compile(rb'\{"id":"[^"\\]*","object":"([a-z._]+)","created":\d+,')
"""Begins a body of nearly every engine."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body asks: the digest by which its answer is kept, and the model."""

    digest: bytes
    model: str


class Known:
    """What was asked before, by the digest of the body; the least lately noted is forgotten first."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._asked: dict[bytes, Asked] = {}

    def find(self, name: bytes) -> Asked | None:
        return self._asked.get(name)

    def note(self, name: bytes, asked: Asked) -> None:
        """The answer to this body is kept."""
        self._asked.pop(name, None)
        while len(self._asked) >= self._most:
            del self._asked[next(iter(self._asked))]
        self._asked[name] = asked

    def forget(self, name: bytes) -> None:
        """It is not, or not for who asked."""
        self._asked.pop(name, None)


class Front:
    """The WSGI application in front of `inner`, Flask's, which gets all that does not lie ready."""

    def __init__(self, gateway: Gateway, inner: WSGIApplication) -> None:
        self._gateway = gateway
        self._inner = inner
        self._largest = min(LARGE, gateway.settings.max_body_bytes)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        kind = KINDS.get(environ["PATH_INFO"]) if environ["REQUEST_METHOD"] == "POST" else None
        if kind is not None and MEANT.isdisjoint(environ):
            answer = self._answer(environ, start_response, kind)
            if answer is not None:
                return answer
        return self._inner(environ, start_response)

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse, kind: Kind) -> Iterable[bytes] | None:
        """The answer where it lies ready; else the request is as it was, but for what Flask is told."""
        started = time.monotonic()
        length = environ.get("CONTENT_LENGTH") or ""
        if not (length.isascii() and length.isdecimal() and 0 < int(length) <= self._largest):
            return None
        body = environ["wsgi.input"].read(int(length))
        environ["wsgi.input"] = BytesIO(body)
        name = environ[BODY] = blake2b(body, digest_size=32, person=kind.encode()).digest()
        gateway = self._gateway
        asked = gateway.known.find(name)
        if asked is None:
            return None
        principal = gateway.identifier.trusted(environ.get("HTTP_AUTHORIZATION"))
        if principal is None or "inference" not in principal.scopes or not may_use(principal, asked.model):
            return None
        request_id = accept_request_id(environ.get(edge.REQUEST_ID_VARIABLE))
        ask = self._ask(principal, asked, kind, request_id, started)
        environ[CALL] = ask.id
        try:
            reservation = gateway.quotas.hit(ask)
        except CacheDown:
            return None
        if reservation is None or reservation.kept is None:
            gateway.known.forget(name)
            return None
        note_budgets(gateway, principal, reservation)
        answer = renewed(reservation.kept.body, kind)
        start_response("200 OK", _headers(reservation, answer, ask.hit_route or "", request_id))
        edge.http_metrics().count("POST", environ["PATH_INFO"], 200, time.monotonic() - started)
        end = partial(self._end, principal, reservation, reservation.kept, environ["PATH_INFO"], started)
        return ClosingIterator([answer], end)

    def _ask(self, principal: Principal, asked: Asked, kind: Kind, request_id: str, started: float) -> Ask:
        gateway = self._gateway
        salt = gateway.responses.salt(principal.cache_salt, share=principal.share_cache)
        return Ask(
            subject=principal.subject,
            limits=principal.limits,
            tokens=0,
            tenant=principal.tenant,
            tenant_id=principal.tenant_id,
            tenant_limits=principal.tenant_limits,
            request_id=request_id,
            model=asked.model,
            kind=kind,
            started_ms=int((time.time() - time.monotonic() + started) * 1000),
            answer_key=salted(salt, asked.digest),
            hit_route=hit_route(asked.model, asked.model),
            prices=gateway.prices.of(asked.model),
        )

    def _end(self, principal: Principal, reservation: Reservation, kept: Kept, path: str, started: float) -> None:
        """Counts and logs what has gone to the client, as `settle` does."""
        gateway, ask = self._gateway, reservation.ask
        metrics, model, tenant = gateway.metrics, gateway.fleet.label(ask.model), principal.tenant
        saved = Usage(kept.prompt_tokens, kept.completion_tokens, kept.cached_tokens)
        metrics.requests.labels(model, tenant, "cached").inc()
        metrics.cache.labels(model, "hit").inc()
        metrics.duration.labels(model).observe(time.monotonic() - started)
        metrics.saved_tokens.labels(model, tenant, "hit").inc(saved.total_tokens)
        if micros := gateway.prices.cost(ask.model, saved):
            metrics.cost_saved.labels(model, tenant).inc(micros / 1e6)
        fields = {
            "tenant": tenant,
            "model": ask.model,
            "stream": False,
            "cache": "hit",
            "outcome": "cached",
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "upstream": None,
            "route": ask.hit_route,
            "retries": 0,
            "resumes": 0,
        }
        edge.log_request(ask.request_id, "POST", path, status=200, started=started, fields=fields)


def renewed(body: bytes, kind: Kind) -> bytes:
    """A kept body as a new answer: with an id and a time of its own."""
    fresh = Answer.new(kind, "")
    head = _HEAD.match(body)
    if head is not None:
        return (
            b'{"id":"%b","object":"%b","created":%d,' % (fresh.id.encode(), head[1], fresh.created) + body[head.end() :]
        )
    whole: dict[str, Any] = from_json(body)
    return sse.dump({**whole, "id": fresh.id, "created": fresh.created})


def _headers(reservation: Reservation, answer: bytes, route: str, request_id: str) -> list[tuple[str, str]]:
    return [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(answer))),
        ("X-Forebay-Cache", "hit"),
        *limit_headers(reservation).items(),
        (ROUTE_HEADER, route),
        (REQUEST_ID_HEADER, request_id),
    ]
