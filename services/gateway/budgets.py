"""Brings to Redis what the ledger knows an account has used of its day and month before Redis counted it.

That is where a budget is new, and where Redis has lost its data. Requests do not wait for it, so those of the first
seconds may pass though the budget is used up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

from services.cache.connection import CacheDown
from services.cache.quotas import Quotas
from services.cache.windows import Reservation, Used
from services.gateway.identify import Principal
from services.gateway.ledger.books import Books, BooksClosed
from services.gateway.ledger.usage import Question, sums

log = logging.getLogger("forebay.budgets")

SETTLES = 2.0
"""Seconds after which what was settled before is in SQL."""
INTERVAL = 0.5


@dataclass(frozen=True)
class _Past:
    """The part of an account's usage that Redis does not know: all before `since_ms`."""

    account: str
    question: Question
    since_ms: int


class Budgets:
    """Restores budgets, each once, in a thread of its own."""

    def __init__(self, books: Books, quotas: Quotas) -> None:
        self._books = books
        self._quotas = quotas
        self._waiting: deque[tuple[float, _Past]] = deque()
        self._known: set[tuple[str, int]] = set()
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="budgets", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def note(self, principal: Principal, reservation: Reservation) -> None:
        """Has the budgets restored of which Redis does not know the past."""
        for account, since_ms in reservation.unknown_past:
            name = principal.subject if account == "key" else f"tenant:{principal.tenant_id}"
            if (name, since_ms) in self._known:
                continue
            self._known.add((name, since_ms))
            question = Question(subject=principal.subject) if account == "key" else Question(tenant=principal.tenant)
            self._waiting.append((time.monotonic() + SETTLES, _Past(name, question, since_ms)))

    def restore_due(self, now: float) -> None:
        """Restores those whose time has come.

        Raises:
            CacheDown: Redis is not reachable; those that are left are tried again.
            BooksClosed: SQL is not.
        """
        while self._waiting and self._waiting[0][0] <= now:
            past = self._waiting[0][1]
            at = datetime.fromtimestamp(past.since_ms / 1000, UTC)
            midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
            day, month = self._used(past, midnight), self._used(past, midnight.replace(day=1))
            if self._quotas.restore(past.account, past.since_ms, day, month):
                facts = {"account": past.account, "month_tokens": month.tokens, "month_micros": month.micros}
                log.info("restored a budget from the ledger", extra=facts)
            self._waiting.popleft()
            self._known.discard((past.account, past.since_ms))

    def _used(self, past: _Past, start: datetime) -> Used:
        of = past.question
        question = Question((), of.tenant, of.subject, None, int(start.timestamp() * 1000), past.since_ms)
        row = next(iter(sums(self._books, question, limit=1)), {})
        return Used((row.get("prompt_tokens") or 0) + (row.get("completion_tokens") or 0), row.get("cost_micros") or 0)

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            try:
                self.restore_due(time.monotonic())
            except (CacheDown, BooksClosed):
                continue  # whoever finds them gone says so
            except Exception:
                log.exception("a budget could not be restored")
                self._waiting.popleft()
