"""Dispatching in this process: a fleet of pods at given URLs, a call, and what its client gets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

from prometheus_client import CollectorRegistry

from services.common.errors import ApiError
from services.common.metrics import GatewayMetrics
from services.common.sse import Event
from services.common.wire import ChatRequest, CompletionRequest, validate
from services.gateway.call import Call, Spent
from services.gateway.dispatch import dispatch
from services.gateway.hold import Hold
from services.gateway.identify import Principal
from services.gateway.parts import Gateway
from services.gateway.upstreams.breaker import Rules
from services.gateway.upstreams.discover import Fleet
from services.gateway.upstreams.resolve import Source


@dataclass
class Dispatched:
    """What came of a call: the data of a stream's events, [DONE] as it is, or a whole body, or why there is none."""

    spent: Spent
    events: list[Any] = field(default_factory=list)
    body: Any = None
    error: ApiError | None = None
    comments: list[bytes] = field(default_factory=list)

    @property
    def text(self) -> str:
        choices = [choice for event in self.events if "choices" in event for choice in event["choices"]]
        return "".join(one["delta"].get("content", "") if "delta" in one else one["text"] for one in choices)

    @property
    def answer(self) -> list[Any]:
        """The events without what every answer has of its own, its id and time, of which there must be one."""
        heads = {(event["id"], event["created"]) for event in self.events if "choices" in event}
        assert len(heads) == 1
        return [{**event, "id": 0, "created": 0} if "choices" in event else event for event in self.events]

    @property
    def failure(self) -> str:
        """The code of the error that the stream ends with."""
        return str(self.events[-1]["error"]["code"])


class Dispatcher:
    """Sends calls to these pods, which it has seen ready; the least busy one is that which stands first.

    Args:
        hold_timeout: seconds that a call waits for a pod where none is ready.
        fallbacks: as the setting says.
        models: those that the caller may use, None for all.
        rules: of the pods' circuits.
    """

    def __init__(
        self,
        *urls: str,
        hold_timeout: float = 0,
        hold_max: int = 10,
        fallbacks: dict[str, list[str]] | None = None,
        models: frozenset[str] | None = None,
        rules: Rules = Rules(),  # noqa: B008  # frozen
    ) -> None:
        self.metrics = GatewayMetrics(CollectorRegistry())
        self.fleet = Fleet(Source(urls), interval=1, metrics=self.metrics, rules=rules, rng=_First())
        self.fleet.look()
        for number, pod in enumerate(self.fleet.upstreams):
            pod.inflight = 100 * number
        self.hold = Hold(self.fleet, self.metrics, timeout=hold_timeout, most=hold_max)
        self._gateway = cast("Gateway", _Parts(self.metrics, self.fleet, self.hold, _Settings(fallbacks or {})))
        self._principal = cast("Principal", _Tenant(models=models))

    def ask(
        self, body: dict[str, Any], *, timeout: float = 30, on_event: Callable[[Event], None] = lambda _: None
    ) -> Dispatched:
        """The client's side of a request for the model `m`, a chat where it has no prompt; `on_event` sees the events
        of a stream as they come."""
        body = {"model": "m", **body}
        if "prompt" not in body:
            body = {"messages": [{"role": "user", "content": "hi"}], **body}
        call = Call(
            kind="text" if "prompt" in body else "chat",
            request=validate(CompletionRequest if "prompt" in body else ChatRequest, body),
            body=body,
            authorization=None,
            request_id="r",
            traceparent="t",
            started=time.monotonic(),
            timeout=timeout,
            use_cache=True,
            client=None,
        )
        spent = Spent()
        try:
            reply = dispatch(self._gateway, self._principal, call, spent)
        except ApiError as error:
            return Dispatched(spent, error=error)
        events: list[bytes] = []
        comments: list[bytes] = []
        try:
            for event in reply.events or ():
                on_event(event)
                (comments if event.data is None else events).append(event.data or event.comment)
        finally:
            reply.close()
        told = [data.decode() if data == b"[DONE]" else json.loads(data) for data in events]
        return Dispatched(spent, told, json.loads(reply.body) if reply.body else None, comments=comments)

    def ready(self) -> list[bool]:
        return [pod.ready for pod in self.fleet.upstreams]

    def counted(self) -> tuple[float, float]:
        """The counters of retries and of resumed streams; those of all dispatchers of the process are one."""
        counters = (self.metrics.retries, self.metrics.resumes)
        return tuple(counter.labels("m")._value.get() for counter in counters)

    def inflight(self) -> list[int]:
        """Calls in each pod."""
        return [pod.inflight - 100 * number for number, pod in enumerate(self.fleet.upstreams)]

    def close(self) -> None:
        for pod in self.fleet.upstreams:
            pod.pool.close()


class _First(Random):
    """Draws the first two of the pods, so that the first is taken unless the second is less loaded."""

    def random(self) -> float:
        return 0.0


@dataclass(frozen=True)
class _Parts:
    """What dispatching needs of a gateway."""

    metrics: GatewayMetrics
    fleet: Fleet
    hold: Hold
    settings: _Settings
    moderator: None = None


@dataclass(frozen=True)
class _Settings:
    fallbacks: dict[str, list[str]]


@dataclass(frozen=True)
class _Tenant:
    cache_salt: str = "salt"
    weight: float = 1.0
    models: frozenset[str] | None = None
