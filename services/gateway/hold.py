"""Calls that wait because no pod is ready for their model: it starts from zero, loads, or all its pods are gone.

They wait in bounded number and for a bounded time. A stream is sent a comment line now and then meanwhile, which says
what is waited for and keeps proxies from giving the connection up; every client ignores it. Who has waited in vain is
told when a pod will be ready, by the load times that were measured.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Listing
from socket import socket
from typing import TYPE_CHECKING, Any

import gevent

from services.common import sse
from services.common.errors import ClientGone, NoPodReady
from services.common.metrics import GatewayMetrics
from services.gateway.hangup import HangupWatch
from services.gateway.upstreams.discover import Fleet

if TYPE_CHECKING:
    from services.gateway.leg import Leg
    from services.gateway.trip import Trip

SAY = 5.0
"""Seconds between comment lines; proxies give a silent connection 30 seconds and more."""
PAUSE, LONGEST_PAUSE = 0.2, 2.0
"""Seconds between looks where several models are waited for; and between tries where a pod is ready and yet does not
take the call, doubled with each."""


class Hold:
    """The calls of this process that wait for a pod.

    Args:
        timeout: seconds that one waits at most.
        most: how many wait at the same time at most.
    """

    def __init__(self, fleet: Fleet, metrics: GatewayMetrics, *, timeout: float, most: int) -> None:
        self.waiting = 0
        self._fleet = fleet
        self._held = metrics.held
        self._timeout = timeout
        self._most = most

    @property
    def open(self) -> bool:
        """Whether one more may wait."""
        return self._timeout > 0 and self.waiting < self._most

    def leg(
        self, trip: Trip, resume: Listing[int] | None = None, alone: dict[str, Any] | None = None
    ) -> Generator[sse.Event, None, Leg]:
        """The next leg of a call, after a wait where it takes one; comments for the client meanwhile.

        Raises:
            NoPodReady: no pod was ready in time, or too many wait already.
            ClientGone: the client hung up; at once.
            ApiError: as `Trip.go_on` says.
        """
        until, waits = 0.0, 0
        while True:
            try:
                return trip.go_on(resume, alone, anew=waits > 0)
            except NoPodReady:
                if not self.open:
                    raise
                now = time.monotonic()
                until = until or min(now + self._timeout, trip.call.deadline)
                if now >= until:
                    raise
            yield from self._wait(trip, until, min(PAUSE * 2**waits, LONGEST_PAUSE))
            waits += 1

    def _wait(self, trip: Trip, until: float, pause: float) -> Iterator[sse.Event]:
        """Returns when a pod may be ready, at the earliest after `pause`, or when the time is over."""
        begun = time.monotonic()
        label = self._held.labels(self._fleet.label(trip.call.model))
        label.inc()
        self.waiting += 1
        trip.spent.policy = "hold"
        try:
            say_at = begun
            while (now := time.monotonic()) < until:
                if now >= say_at:
                    say_at = now + SAY
                    phase = self._fleet.phase(trip.models[0])
                    yield sse.Event(None, comment=sse.comment(f"waiting for a pod ({phase or 'ready'})"))
                if self._ready(trip, min(say_at, until) - time.monotonic()):
                    # A pod that is ready and yet does not take the call is not asked again and again without a pause.
                    time.sleep(max(0.0, min(begun + pause, until) - time.monotonic()))
                    return
        finally:
            self.waiting -= 1
            label.dec()
            trip.spent.held += time.monotonic() - begun

    def _ready(self, trip: Trip, seconds: float) -> bool:
        """Waits so long at most for a pod of any of the models; ends at once when the client hangs up."""
        models = trip.models
        until = time.monotonic() + seconds
        with Watched(trip.call.client):
            while (left := until - time.monotonic()) > 0:
                if any(self._fleet.wait_ready(model, 0) for model in models[1:]):
                    return True
                if self._fleet.wait_ready(models[0], min(left, PAUSE) if len(models) > 1 else left):
                    return True
        return False


class Watched:
    """A block in which the client's hang-up ends whatever the greenlet waits for, by `ClientGone`."""

    def __init__(self, client: socket | None) -> None:
        self._client = client
        self._watch: HangupWatch | None = None

    def __enter__(self) -> None:
        if self._client is not None:
            waiting = gevent.getcurrent()
            self._watch = HangupWatch(self._client, lambda: gevent.kill(waiting, ClientGone()))

    def __exit__(self, *_: object) -> None:
        if self._watch is not None:
            self._watch.close()
