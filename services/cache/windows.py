"""Limit arithmetic without I/O: the same rules as `lua/admit.lua`, in this process' memory.

Used while Redis is down, and as the model that the Lua script is tested against.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

WINDOW_SECONDS = 60.0
NO_LIMIT = 2**53
Refusal = Literal["requests", "tokens"]


@dataclass(frozen=True)
class Limits:
    """What an account, a subject or its tenant, may use. None is no limit; money is in whole micro-units."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    micros_per_day: int | None = None
    micros_per_month: int | None = None

    def share(self, fraction: float) -> Limits:
        """A fraction of the limits, at least one of each."""
        parts = (getattr(self, name) for name in LIMITS)
        return Limits(*(None if part is None else max(1, int(part * fraction)) for part in parts))


LIMITS = tuple(field.name for field in fields(Limits))


@dataclass(frozen=True)
class Reservation:
    """The answer to "may I?". Counts are those after the reservation; `reset` is seconds until the window ends."""

    refused: Refusal | None
    requests_left: int
    tokens_left: int
    reset: float
    window: str
    reserved: int


@dataclass
class _Window:
    id: str
    ends: float
    requests: int = 0
    tokens: int = 0


class Windows:
    """Windows by caller. A window is born with a caller's first request and ends as a whole a minute later."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ids = itertools.count()
        self._windows: dict[str, _Window] = {}

    def reserve(self, subject: str, limits: Limits, tokens: int) -> Reservation:
        """Takes one request and `tokens` (at most the whole limit), or says which limit refuses it."""
        now = self._clock()
        most_requests = NO_LIMIT if limits.requests_per_minute is None else limits.requests_per_minute
        most_tokens = NO_LIMIT if limits.tokens_per_minute is None else limits.tokens_per_minute
        window = self._windows.get(subject)
        if window is None or window.ends <= now:
            self._drop_ended(now)
            window = _Window(f"local-{next(self._ids)}", now + WINDOW_SECONDS)
        reserved = min(tokens, most_tokens)
        refused: Refusal | None = None
        if window.requests + 1 > most_requests:
            refused = "requests"
        elif window.tokens + reserved > most_tokens:
            refused = "tokens"
        else:
            window.requests += 1
            window.tokens += reserved
            self._windows[subject] = window
        return Reservation(
            refused,
            max(0, most_requests - window.requests),
            max(0, most_tokens - window.tokens),
            window.ends - now,
            window.id,
            0 if refused else reserved,
        )

    def settle(self, subject: str, reservation: Reservation, used: int) -> None:
        """Replaces the reservation by what was used, if its window still runs."""
        window = self._windows.get(subject)
        if window is not None and window.id == reservation.window:
            window.tokens += used - reservation.reserved

    def _drop_ended(self, now: float) -> None:
        self._windows = {subject: window for subject, window in self._windows.items() if window.ends > now}
