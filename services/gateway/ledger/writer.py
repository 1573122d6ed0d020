"""Brings entries to SQL, in the background of each gateway: from the stream in Redis, or from here while that is gone.

The order is always SQL first, then out of the stream. Whoever dies in between leaves an entry that is entered again,
which changes nothing, since a call's id is a row's. So any number of gateways may write at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from services.cache.connection import CacheDown
from services.cache.ledger import Entry, Stream, Waiting
from services.common.metrics import GatewayMetrics
from services.gateway.ledger.books import BadRow, Books, BooksClosed
from services.gateway.ledger.table import DAY_MS, row_of

log = logging.getLogger("forebay.ledger")

BATCH = 200
"""Entries of one transaction: what can be made ready in some 2 ms, for which all else in the process waits."""
INTERVAL = 0.2
"""Seconds between two looks at the stream while there is less than a batch in it: a transaction of few entries costs
each of them more."""
RETRY = 2.0
"""Seconds between two tries while SQL is gone."""
CHORES = 5.0
"""Seconds between two looks at how far SQL is behind, and at what others left lying."""
TIDY = 3600.0
"""Seconds between two looks for rows that are too old."""
MOST_SPOOLED = 50_000
"""Entries that are kept in memory at most, some 50 MiB, while neither Redis nor SQL takes them."""


class Ledger:
    """One gateway's part in writing the ledger. `spool` may be called from any greenlet."""

    def __init__(self, books: Books, stream: Stream, metrics: GatewayMetrics, *, retention_days: int = 0) -> None:
        """
        Args:
            retention_days: how long rows are kept, in days; 0 is for ever.
        """
        self.books = books
        self._stream = stream
        self._metrics = metrics
        self._retention_days = retention_days
        self._spooled: deque[Entry] = deque()
        self._entering: list[Entry] = []
        """Those of them that SQL is asked to take just now, and may have taken."""
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._in_hand = True
        """Whether the stream may hold entries that were given to us before, by a try that failed."""
        self._down = False
        self._full = False
        """Whether the stream gave all that it was asked for, so that there is more to take at once."""
        self._chores_at = self._tidy_at = 0.0

    def start(self) -> None:
        """Writes from now on, until `stop`."""
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Writes what there is, for `grace` seconds at most; what is still here then goes to the log."""
        deadline = time.monotonic() + grace
        self._stopped.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(grace)
        while time.monotonic() < deadline and self._guarded(self.write_some):
            pass
        self._leave_behind([*self._entering, *self._spooled])
        self._spooled.clear()
        self._guarded(self._stream.leave)
        self._show_spool()

    def spool(self, entry: Entry) -> None:
        """Has an entry written past Redis. Returns at once and never raises."""
        self._metrics.ledger_spooled.inc()
        self._spooled.append(entry)
        if len(self._spooled) > MOST_SPOOLED:
            self._lose(self._spooled.popleft(), "neither Redis nor SQL took it")
        self._wake.set()

    def write_some(self) -> bool:
        """Enters one batch; whether there is likely more to do now.

        Raises:
            BooksClosed: SQL can't be reached or written now; nothing is lost by it.
        """
        self._full = False
        self._write_spooled()
        try:
            if self._in_hand:
                waiting = self._stream.take(BATCH, again=True)
                self._in_hand = bool(waiting)
            if not self._in_hand:
                waiting = self._stream.take(BATCH)
            if waiting:
                self._enter(waiting)
            self._full = len(waiting) == BATCH
        except CacheDown:
            return False
        return bool(waiting)

    def _enter(self, waiting: Sequence[Waiting]) -> None:
        """Enters what the stream gave, and takes it out of the stream. Should that fail, it is still in our hands."""
        before, self._in_hand = self._in_hand, True
        rows: list[dict[str, Any]] = []
        good: list[Waiting] = []
        bad: list[tuple[Waiting, str]] = []
        for one in waiting:
            try:
                rows.append(row_of(Entry.of(one[1])))
            except (ValueError, TypeError, AttributeError) as error:
                if one[1]:  # else it was deleted meanwhile, as SQL has it
                    bad.append((one, str(error)))
            else:
                good.append(one)
        bad += [(good[index], reason) for index, reason in self._insert(rows)]
        for one, reason in bad:
            log.error("entry put aside", extra={"entry": one[0].decode(), "reason": reason})
        aside = {one[0] for one, _ in bad}
        self._stream.finish([one[0] for one in waiting if one[0] not in aside], bad)
        self._in_hand = before

    def _insert(self, rows: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
        """Enters the rows; the numbers of those that SQL will never take, and why."""
        if not rows:
            return []
        try:
            self._metrics.ledger_written.inc(self.books.enter(rows))
        except BadRow as error:
            if len(rows) == 1:
                return [(0, str(error))]
            half = len(rows) // 2
            rest = [(index + half, reason) for index, reason in self._insert(rows[half:])]
            return [*self._insert(rows[:half]), *rest]
        return []

    def _write_spooled(self) -> None:
        """Enters what is here; where SQL is gone and Redis back, puts it where it would have been."""
        while self._spooled:
            batch = [self._spooled.popleft() for _ in range(min(BATCH, len(self._spooled)))]
            self._entering = batch
            try:
                self._enter_spooled(batch)
            except BooksClosed:
                try:
                    self._stream.add(batch)
                except CacheDown:
                    self._spooled.extendleft(reversed(batch))
                self._entering = []
                self._show_spool()
                raise
            self._entering = []
            self._show_spool()

    def _leave_behind(self, entries: list[Entry]) -> None:
        """The end of a gateway that SQL keeps waiting: Redis takes what is here, else the log."""
        try:
            if entries:
                self._stream.add(entries)
        except CacheDown:
            for entry in entries:
                self._lose(entry, "the gateway ends")

    def _enter_spooled(self, batch: list[Entry]) -> None:
        rows, entries = [], []
        for entry in batch:
            try:
                rows.append(row_of(entry))
            except (ValueError, TypeError, AttributeError) as error:
                self._lose(entry, str(error))
            else:
                entries.append(entry)
        for index, reason in self._insert(rows):
            self._lose(entries[index], reason)

    def _lose(self, entry: Entry, reason: str) -> None:
        """The last resort: the log has all that the ledger would have had, and no text of the call."""
        self._metrics.ledger_lost.inc()
        log.error("entry of the ledger lost", extra={"reason": reason, "entry": asdict(entry)})

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            self._guarded(self.write_some)
            if time.monotonic() >= self._chores_at:
                self._chores_at = time.monotonic() + CHORES
                self._guarded(self._chores)
            if not self._full and not self._stopped.is_set():
                # While SQL is gone, entries that come in need not wake us.
                (self._stopped if self._down else self._wake).wait(RETRY if self._down else INTERVAL)

    def _guarded(self, work: Callable[[], bool | None]) -> bool:
        """Whether the work says that there is more. A writer must outlive whatever it meets."""
        try:
            more = work()
        except BooksClosed as error:
            if not self._down:
                log.error("the ledger is closed: entries wait", extra={"error": str(error)})
            self._down = True
            return False
        except CacheDown:
            return False
        except Exception:
            log.exception("the ledger's writer failed")
            return False
        if self._down and work == self.write_some:
            log.info("the ledger is open again")
            self._down = False
        return bool(more)

    def _chores(self) -> None:
        lag = self._stream.lag()
        self._metrics.ledger_waiting.set(lag.entries)
        self._metrics.ledger_oldest.set(lag.oldest)
        self._show_spool()
        if not self._down:
            while inherited := self._stream.inherit(BATCH):
                self._enter(inherited)
        if self._retention_days and time.monotonic() >= self._tidy_at:
            before = int(time.time() * 1000) - self._retention_days * DAY_MS
            while self.books.forget(before, BATCH) and not self._stopped.is_set():
                pass
            self._tidy_at = time.monotonic() + TIDY

    def _show_spool(self) -> None:
        self._metrics.ledger_spool.set(len(self._spooled))
