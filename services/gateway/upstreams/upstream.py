"""A pod as the gateway sees it, and one request's stay at it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.common.orca import LOAD_HEADER, Report, read_report
from services.gateway.upstreams.affinity import seed_of
from services.gateway.upstreams.breaker import DEFAULT, NO_PERMIT, Breaker, Rules
from services.gateway.upstreams.exchange import Pool

STALE = 5.0
"""Seconds after which a report says nothing any more: some looks at the pod have failed meanwhile, or it has none."""
REPORT_INTERVAL = 0.1
"""Seconds within which a pod's next report is not read: at hundreds of answers a second one in many is enough."""
TIMES = 8
"""Times to the first byte that are kept of each kind of request."""
PACE_WEIGHT = 0.1
NO_FAULT = (503, 504)
"""Errors that say nothing of a pod: it is not ready for this model, which says nothing of its others, or too full; and
the deadline was the client's."""

Kind = tuple[str, bool]
"""What is like in its time to the first byte: the model, and whether the answer is streamed."""


class Headers(Protocol):
    def get(self, name: str, /) -> str | None: ...


@dataclass(eq=False)
class Upstream:
    """A pod, as last seen: its models by name with what it says of each, whether it takes requests, how many of this
    gateway's requests are in it, and how it fares with them."""

    url: str
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    ready: bool = False
    inflight: int = 0
    rules: Rules = field(default=DEFAULT, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    on_change: Callable[[Upstream], None] = field(default=lambda _: None, repr=False)
    """Called when its circuit has opened or closed."""

    def __post_init__(self) -> None:
        self.pool = Pool(self.url)
        self.seed = seed_of(self.url)
        self.breaker = Breaker(self.rules)
        self.expected: frozenset[str] = frozenset()
        """Models that it will serve once it is ready, where it or its Service says so."""
        self.phase: str | None = None
        """What its loading is at, by its own word."""
        self.seen_at = self.clock()
        self.down_since: float | None = self.seen_at
        """Since when it has not been ready, None while it is."""
        self.times: dict[Kind, deque[tuple[float, float]]] = {}
        """When the latest first bytes came, and the seconds that they took."""
        self.unanswered: dict[Attempt, None] = {}
        """Requests that wait for their first byte, the oldest first."""
        self.attempts: dict[Attempt, None] = {}
        """All requests from here that are in it."""
        self.silent_looks = 0
        """Looks in a row that it took and did not answer."""
        self._report: Report | None = None
        self._reported_at = -STALE
        self._inflight_then = 0
        self._others = 0
        """Requests of other gateways in it, when it last said."""
        self._pace = 0.0
        self._last_end: float | None = None

    def resumes(self, model: str) -> bool:
        """Whether its engine can go on with an answer that another pod began (`resume_token_ids`), as ours does."""
        return self.models.get(model, {}).get("owned_by") == "forebay"

    def begin(self, model: str, *, streamed: bool) -> Attempt:
        """A request's stay here, which has begun; `close` of it must be called."""
        return Attempt(self, (model, streamed))

    def give_up(self) -> None:
        """Ends the requests in it, as it hangs, so that others compute them: those that have no answer yet, and where
        others can go on with one, all."""
        for attempt in list(self.attempts):
            if attempt in self.unanswered or self.resumes(attempt.kind[0]):
                attempt.on_hang()

    def take_report(self, value: str | None, now: float) -> None:
        """Reads the header `endpoint-load-metrics`, if there is one."""
        if value is None or now - self._reported_at < REPORT_INTERVAL:
            return
        report = read_report(value)
        if report is not None:
            self._report, self._reported_at, self._inflight_then = report, now, self.inflight
            self._others = max(0, report.waiting + (report.running or 0) - self.inflight)

    def report(self, now: float) -> Report | None:
        """What it last said of its load, None when that is too old."""
        return self._report if now - self._reported_at < STALE else None

    @property
    def queue(self) -> int | None:
        """Requests in its queue as it last said, of all gateways; None where it does not tell."""
        report = self.report(self.clock())
        return None if report is None else report.waiting

    def load(self, now: float) -> int:
        """Requests in it: those from here, and by its own word those of other gateways."""
        return self.inflight + self._others if now - self._reported_at < STALE else self.inflight

    def queue_wait(self, now: float) -> float:
        """Seconds that a request which comes now will be in its queue; 0 where nobody waits or nothing is known."""
        report = self.report(now)
        if report is None:
            return 0.0
        if report.waiting:
            queued = report.waiting + self.inflight - self._inflight_then
        else:
            queued = 0 if report.capacity is None else self.load(now) + 1 - report.capacity
        return max(0, queued) * (1 / report.rate if report.rate else self._pace)

    def took(self, kind: Kind, now: float, seconds: float) -> None:
        """Notes the time to the first byte of a request."""
        times = self.times.get(kind)
        if times is None:
            times = self.times[kind] = deque(maxlen=TIMES)
        times.append((now, seconds))

    def ended(self, now: float) -> None:
        """Notes the pace at which requests end, of those that follow each other without a pause."""
        if self._last_end is not None:
            seconds = now - self._last_end
            self._pace += (seconds - self._pace) * (PACE_WEIGHT if self._pace else 1)
        self._last_end = now if self.inflight else None


class Attempt:
    """One request's stay at a pod, from which it is learnt how the pod fares. `close` must be called."""

    __slots__ = ("_answered", "_breaker", "_open", "_permit", "_pod", "began", "kind", "on_hang")

    def __init__(self, pod: Upstream, kind: Kind) -> None:
        self.began = pod.clock()
        self._pod = pod
        self.kind = kind
        self.on_hang: Callable[[], None] = _nothing
        """Ends the request from outside, when the pod hangs; it must not wait."""
        self._open = True
        self._answered = False
        self._breaker = pod.breaker  # which the pod has until it is started anew
        self._permit = self._breaker.begin(self.began)
        pod.inflight += 1
        pod.attempts[self] = pod.unanswered[self] = None

    def answered(self, status: int, headers: Headers) -> None:
        """The status line and the headers have come. Of a stream they may come long before the first token, as vLLM's
        do; `first_byte` is for that."""
        pod, now = self._pod, self._pod.clock()
        pod.take_report(headers.get(LOAD_HEADER), now)
        if status != 200 or not self.kind[1]:
            pod.unanswered.pop(self, None)
        if status == 200 and not self.kind[1]:
            pod.took(self.kind, now, now - self.began)
        elif status >= 500:
            if status not in NO_FAULT:
                self.failed()
            return
        self._answered = True
        if self._breaker.probes(self._permit):  # a long stream need not end before others may go there
            self._permit = self._breaker.succeeded(self._permit, now)
            pod.on_change(pod)

    def first_byte(self) -> None:
        """The stream has begun."""
        pod, now = self._pod, self._pod.clock()
        pod.unanswered.pop(self, None)
        pod.took(self.kind, now, now - self.began)

    def failed(self) -> None:
        """The pod was not reached, broke off, or gave the answer up."""
        breaker, permit, self._permit = self._breaker, self._permit, NO_PERMIT
        before = breaker.state
        breaker.failed(permit, self._pod.clock())
        if breaker.state != before:
            self._pod.on_change(self._pod)

    def close(self) -> None:
        """It has ended; without a word on how, when the client left or the deadline passed."""
        if not self._open:
            return
        self._open = False
        pod, now = self._pod, self._pod.clock()
        pod.unanswered.pop(self, None)
        del pod.attempts[self]
        pod.inflight -= 1
        if self._answered:
            pod.ended(now)
            self._breaker.succeeded(self._permit, now)
        elif self._breaker.probes(self._permit):
            self._breaker.released(self._permit, now)
            pod.on_change(pod)


def _nothing() -> None:
    pass
