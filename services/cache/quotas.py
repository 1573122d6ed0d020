"""Quotas and the look-up of a cached answer, in one exchange with Redis."""

from __future__ import annotations

import contextlib

from services.cache.connection import CacheDown, Connection
from services.cache.windows import NO_LIMIT, WINDOW_SECONDS, Limits, Reservation, Windows

FALLBACK_FRACTION = 0.25
"""Part of a caller's limits that each gateway process allows by itself while Redis is down."""


class Quotas:
    """Reserves and settles, exactly across all gateway processes while Redis is there."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._admit = connection.script("admit")
        self._settle = connection.script("settle")
        self._local = Windows()

    def reserve(
        self, subject: str, limits: Limits, tokens: int, answer_key: str | None = None
    ) -> tuple[Reservation, bytes | None]:
        """Reserves one request and `tokens` for `subject`; also the cached answer under `answer_key`, if there is one.

        A cached answer costs a request and no tokens. With Redis down the reservation is made in this process' memory,
        on a stated fraction of the limits, and nothing is cached.
        """
        key = _window_key(subject)
        most_requests = NO_LIMIT if limits.requests_per_minute is None else limits.requests_per_minute
        most_tokens = NO_LIMIT if limits.tokens_per_minute is None else limits.tokens_per_minute
        args = [most_requests, most_tokens, tokens, int(WINDOW_SECONDS * 1000)]
        try:
            reply = self._connection.run(self._admit, [key, answer_key or key], args)
        except CacheDown:
            return self._local.reserve(subject, limits.share(FALLBACK_FRACTION), tokens), None
        refused, requests_left, tokens_left, reset_ms, window, reserved, cached = reply
        return Reservation(
            refused.decode() or None, requests_left, tokens_left, reset_ms / 1000, window.decode(), reserved
        ), cached

    def settle(self, subject: str, reservation: Reservation, used: int) -> None:
        """Replaces what was reserved by what was used. With Redis down the reservation stands until its window ends."""
        if used == reservation.reserved:
            return
        if reservation.window.startswith("local-"):
            self._local.settle(subject, reservation, used)
            return
        with contextlib.suppress(CacheDown):
            args: list[str | int] = [reservation.window, reservation.reserved, used]
            self._connection.run(self._settle, [_window_key(subject)], args)


def _window_key(subject: str) -> str:
    return f"forebay:window:{subject}"
