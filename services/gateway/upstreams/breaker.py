"""A circuit breaker for one pod: a pure state machine over the outcomes of its requests, with the time as an argument.

Closed, every request may go there. It opens on failures in a row, on too many among the latest, or when somebody who
compares pods finds it slow. After a pause it is half-open: one request at a time goes there, and the first one that is
answered closes it; one that fails opens it again for twice as long. (Nygard, "Release It!", the circuit breaker; the
rate over the latest outcomes is resilience4j's count-based window.)
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half-open"]
NO_PERMIT = -1
"""Held by a request whose outcome says nothing: it began while the circuit was not closed, and is not the probe."""


@dataclass(frozen=True)
class Rules:
    """When a circuit opens and for how long; times are seconds.

    in_a_row: failures without a success between them. latest, rate: so many latest outcomes, no older than `window`,
    and the part of them that failed. pause: before the first probe; doubled at each opening, up to `longest_pause`,
    unless the circuit was closed for longer than that meanwhile.
    """

    in_a_row: int = 5
    latest: int = 20
    rate: float = 0.5
    window: float = 30.0
    pause: float = 2.0
    longest_pause: float = 60.0


DEFAULT = Rules()


class Breaker:
    """The circuit to one pod."""

    def __init__(self, rules: Rules = DEFAULT) -> None:
        self.state: State = "closed"
        self.slow = False
        """Whether it is not closed because the pod is slow, not because it fails: better than no pod at all."""
        self.blocked_until = 0.0
        """When the next request may go there: in the past while it is closed, infinite while a probe is under way."""
        self._rules = rules
        self._permit = 0
        self._openings = 0
        self._closed_at = -math.inf
        self._in_a_row = 0
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=rules.latest)
        self._failures = 0

    def begin(self, now: float) -> int:
        """Notes that a request begins; returns the permit that its outcome is told with."""
        if self.state == "closed":
            return self._permit
        if self.state == "open" and now >= self.blocked_until:
            self._become("half-open", math.inf)
            return self._permit
        return NO_PERMIT

    def probes(self, permit: int) -> bool:
        """Whether the request with this permit is the one whose answer decides."""
        return self.state == "half-open" and permit == self._permit

    def succeeded(self, permit: int, now: float) -> int:
        """The pod did what it was asked; returns the permit for what the request may still come to."""
        if permit != self._permit:
            return permit
        if self.state == "half-open":
            self._closed_at = now
            self.slow = False
            self._become("closed", 0.0)
        else:
            self._note(now, failed=False)
        return self._permit

    def failed(self, permit: int, now: float) -> None:
        """The pod was not reached, broke off, or answered that it is broken."""
        if permit != self._permit:
            return
        if self.state == "half-open":
            self._open(now)
            return
        self._note(now, failed=True)
        if self._in_a_row >= self._rules.in_a_row or self._rate_reached(now):
            self._open(now)

    def released(self, permit: int, now: float) -> None:
        """The request ended and says nothing of the pod, as its client left. Another one may probe."""
        if self.probes(permit):
            self._become("open", now)

    def trip(self, now: float) -> None:
        """Opens it because the pod is slow."""
        if self.state == "closed":
            self.slow = True
            self._open(now)

    def _note(self, now: float, *, failed: bool) -> None:
        if len(self._outcomes) == self._rules.latest:
            self._failures -= self._outcomes[0][1]
        self._outcomes.append((now, failed))
        self._failures += failed
        self._in_a_row = self._in_a_row + 1 if failed else 0

    def _rate_reached(self, now: float) -> bool:
        full = len(self._outcomes) == self._rules.latest and now - self._outcomes[0][0] <= self._rules.window
        return full and self._failures >= self._rules.rate * self._rules.latest

    def _open(self, now: float) -> None:
        if self.state == "closed" and now - self._closed_at > self._rules.longest_pause:
            self._openings = 0
        pause = min(self._rules.pause * 2.0 ** min(self._openings, 30), self._rules.longest_pause)
        self._openings += 1
        self._become("open", now + pause)

    def _become(self, state: State, blocked_until: float) -> None:
        self.state, self.blocked_until = state, blocked_until
        self._permit += 1  # what began before says nothing of the pod as it is now
        self._in_a_row = self._failures = 0
        self._outcomes.clear()
