"""How many retries a process may send: a part of its requests, so that pods in trouble do not get more work for it.

Finagle's retry budget (`RetryBudget`: 20% of the requests of the last 10 s, and some a second so that a quiet service
may retry at all); Envoy has the same under that name.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW = 10
"""Seconds that requests and retries count for; also the number of slices that they are counted in."""
LEAST_A_SECOND = 10
"""Retries a second that are allowed whatever the number of requests."""


class RetryBudget:
    """Requests fill it, retries empty it, both are forgotten after the window."""

    def __init__(self, ratio: float = 0.2, *, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            ratio: retries for each request.
        """
        self._ratio = ratio
        self._clock = clock
        self._slices: deque[list[int]] = deque()  # of a second each: its number, requests, retries; oldest first
        self._requests = 0
        self._retries = 0

    def request(self) -> None:
        """Counts a request."""
        self._now()[1] += 1
        self._requests += 1

    def spend(self) -> bool:
        """Takes one retry; False when there is none, and the retry must not be made."""
        this = self._now()
        if self._retries + 1 > self._requests * self._ratio + LEAST_A_SECOND * WINDOW:
            return False
        this[2] += 1
        self._retries += 1
        return True

    def _now(self) -> list[int]:
        second = int(self._clock())
        slices = self._slices
        if slices and slices[-1][0] == second:
            return slices[-1]
        while slices and slices[0][0] <= second - WINDOW:
            _, requests, retries = slices.popleft()
            self._requests -= requests
            self._retries -= retries
        slices.append([second, 0, 0])
        return slices[-1]
