"""Settles what gateways that died have left behind, with the counts that the pods have.

Each gateway looks after the others. A call is settled by taking its lease out of Redis, which can be done once, so
several reapers that race, or a gateway that was only slow, cost nothing but a question. A pod that still runs a call is
talking to its gateway, which therefore lives, however late its heartbeat is: such a call is left alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.cache.connection import CacheDown
from services.cache.ledger import Entry, Stream
from services.cache.processes import Process
from services.cache.quotas import Lease, Quotas
from services.cache.windows import Used
from services.common.metrics import GatewayMetrics
from services.common.wire import Usage
from services.gateway.ledger.books import Books, BooksClosed, Row
from services.gateway.ledger.pods import Known, ask_all, whole
from services.gateway.prices import Prices
from services.gateway.upstreams.discover import Fleet

log = logging.getLogger("forebay.ledger")

INTERVAL = 1.0
"""Seconds between two looks."""
PATIENCE = 2.0
"""Seconds that a process must be dead under our eyes: when Redis comes back, all heartbeats are late."""
SILENCE = 20.0
"""Seconds that we wait for a pod that does not answer and may know of a call."""
OVERDUE = 60.0
"""Seconds after its deadline at which a call of a living process counts as left behind: Redis was gone at its end."""
BATCH = 500
"""Calls that pods are asked about in one question."""
ROLE = "reaper"


@dataclass(frozen=True)
class Parts:
    """What a reaper works with."""

    process: Process
    quotas: Quotas
    stream: Stream
    books: Books
    fleet: Fleet
    prices: Prices
    metrics: GatewayMetrics


class Reaper:
    """One gateway's reaper; one of all of them is at work at a time."""

    def __init__(self, parts: Parts, clock: Callable[[], float] = time.monotonic) -> None:
        self._parts = parts
        self._clock = clock
        self._stopped = threading.Event()
        self._dead: dict[str, float] = {}
        """Processes that are dead, and since when we know."""
        self._asked: dict[str, float] = {}
        """Calls that nobody knew of as long as a pod was silent, and since when."""
        self._overdue_at = clock() + OVERDUE

    def start(self) -> None:
        """Looks after the others from now on, until `stop`."""
        threading.Thread(target=self._run, name="reaper", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def sweep(self) -> None:
        """One look at the others, and the settlement of what is due.

        Raises:
            CacheDown: Redis is not reachable; nobody counts as dead for as long.
            BooksClosed: SQL is not, so that nobody can tell what it has.
        """
        now = self._clock()
        try:
            alive, dead = self._parts.process.others()
        except CacheDown:
            self._dead.clear()
            raise
        self._dead = {process: self._dead.get(process, now) for process in dead}
        due = [process for process, since in self._dead.items() if now - since >= PATIENCE]
        overdue = now >= self._overdue_at
        if not (due or overdue) or not self._parts.process.first(ROLE):
            return
        for process in due:
            leases = self._parts.quotas.leases(process)
            if leases:
                self._settle(leases)
            elif self._parts.stream.leave(process):
                self._parts.process.forget(process)
        if overdue:
            self._overdue_at = now + OVERDUE
            latest = time.time_ns() // 1_000_000 - OVERDUE * 1000
            for process in (*alive, self._parts.process.id):
                self._settle([one for one in self._parts.quotas.leases(process) if one.deadline_ms < latest])

    def _settle(self, leases: Sequence[Lease]) -> None:
        for start in range(0, len(leases), BATCH):
            batch = {lease.id: lease for lease in leases[start : start + BATCH]}
            rows = self._parts.books.known(list(batch))
            pods = list(self._parts.fleet.upstreams)
            answers, complete = ask_all(pods, [identity for identity in batch if identity not in rows])
            for identity, lease in batch.items():
                found = rows.get(identity) or self._verdict(lease, answers.get(identity, ()), complete and bool(pods))
                if found is not None:
                    self._end(lease, found)

    def _verdict(self, lease: Lease, legs: Sequence[Known], complete: bool) -> Entry | None:
        """What the ledger shall say of the call; None while that may still get better."""
        now = self._clock()
        if legs:
            running = any(leg.outcome is None for leg in legs)
            if running and time.time() * 1000 < lease.deadline_ms + OVERDUE * 1000:
                return None
            return self._entry(lease, "orphaned", whole(legs), legs[-1].pod)
        if not complete and now - self._asked.setdefault(lease.id, now) < SILENCE:
            return None
        return self._entry(lease, "gateway_lost", Usage(0, 0), "")

    def _entry(self, lease: Lease, outcome: str, usage: Usage, pod: str) -> Entry:
        return Entry(
            id=lease.id,
            request_id=lease.request_id,
            tenant=lease.tenant,
            tenant_id=lease.tenant_id,
            subject=lease.subject,
            model=lease.model,
            kind=lease.kind,
            outcome=outcome,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens or 0,
            completion_tokens=usage.completion_tokens,
            started_ms=lease.started_ms,
            compute_seconds=usage.compute_seconds,
            energy_joules=usage.energy_joules,
            upstream=pod,
            cost_micros=self._parts.prices.cost(lease.model, usage),
        )

    def _end(self, lease: Lease, found: Entry | Row) -> None:
        """Settles a call by its new entry, or by the row that the ledger has of it."""
        self._asked.pop(lease.id, None)
        if isinstance(found, Entry):
            used, fields, outcome = _used(found.__dict__), found.fields(), found.outcome
        else:
            used, fields, outcome = _used(found), [], "known"
        if self._parts.quotas.settle_orphan(lease, used, fields):
            self._parts.metrics.orphans_settled.labels(outcome).inc()
            log.warning(
                "call of a lost gateway settled",
                extra={
                    "call": lease.id,
                    "request_id": lease.request_id,
                    "outcome": outcome,
                    "gateway": lease.process,
                    "tokens": used.tokens,
                },
            )

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            try:
                self.sweep()
            except (CacheDown, BooksClosed):
                continue  # whoever finds them gone says so
            except Exception:
                log.exception("the reaper failed")


def _used(row: Mapping[str, Any]) -> Used:
    return Used(row["prompt_tokens"] + row["completion_tokens"], row["cost_micros"])
