"""Reserving and settling what a call uses, in one exchange with Redis each, exactly across all gateway processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from services.cache.connection import CacheDown, Connection
from services.cache.kept import Kept
from services.cache.local import DAY_MS, Windows, month_of
from services.cache.windows import LIMITS, Account, Ask, Refused, Reservation, Standing, Used
from services.common.ids import new_id

FALLBACK_FRACTION = 0.25
"""Part of an account's limits that each gateway process allows by itself while Redis is down."""
NO_ANSWER = ("", b"", 0)


@dataclass(frozen=True)
class Lease:
    """What a call that is not settled holds, written down so that another process can settle it."""

    id: str
    process: str
    receipt: str
    """What it holds of which counters, as admit.lua says it."""
    request_id: str
    tenant: str
    tenant_id: str
    subject: str
    model: str
    kind: str
    started_ms: int
    deadline_ms: int
    flight_key: str
    flight: str

    @classmethod
    def of(cls, process: str, call: bytes, value: bytes) -> Lease:
        """The lease as admit.lua wrote it."""
        facts, _, receipt = value.decode().rpartition("\n")
        return cls(call.decode(), process, receipt, *from_json(facts))


class Quotas:
    """Reserves and settles. While Redis is down it does so in this process' memory, on a stated fraction of the limits.

    `process` is the name that leases are kept under; one that is dead has its calls settled by the others.
    """

    def __init__(self, connection: Connection, *, process: str | None = None) -> None:
        self.process = process or new_id()
        self._connection = connection
        self._admit = connection.script("admit")
        self._settle = connection.script("settle")
        self._restore = connection.script("restore")
        self._local = Windows()

    def reserve(self, ask: Ask, *, now_ms: int | None = None) -> Reservation:
        """Reserves all that the call may use, or nothing and says which limit refuses it.

        In the same exchange it fetches the answer where it is kept, and takes the lead among identical calls where
        nobody has it. A cached answer, and one that another call is computing, costs a request and no tokens. `now_ms`
        takes the place of the server's time.
        """
        try:
            reply = self._connection.run(self._admit, (), self._arguments(ask, now_ms))
        except CacheDown:
            ask.limits, ask.tenant_limits = (
                ask.limits.share(FALLBACK_FRACTION),
                ask.tenant_limits.share(FALLBACK_FRACTION),
            )
            return self._local.reserve(ask)
        return _reservation(ask, reply)

    def hit(self, ask: Ask, *, now_ms: int | None = None) -> Reservation | None:
        """Admits and settles the call where its answer is kept and no limit refuses it; else does nothing at all.

        Raises:
            CacheDown: Redis did not answer. Should it have done its part nevertheless, the call is in the ledger.
        """
        reply = self._connection.run(self._admit, (), self._arguments(ask, now_ms, only_hit=True))
        return None if reply is None else _reservation(ask, reply)

    def _arguments(self, ask: Ask, now_ms: int | None, *, only_hit: bool = False) -> list[str | int | bytes]:
        """As admit.lua reads them."""
        deadline = ask.deadline_ms
        args: list[str | int | bytes] = [
            ask.id,
            self.process,
            deadline,
            ask.tokens,
            ask.micros,
            ask.answer_key or "",
            ask.flight_key or "",
            ask.flight or ask.id,
            "" if only_hit else _facts(ask, deadline),
            ask.subject,
            *ask.limits.arguments,
            f"tenant:{ask.tenant_id}",
            *ask.tenant_limits.arguments,
            "" if ask.hit_route is None else _hit_entry(ask, ask.hit_route),
            *ask.prices,
            int(only_hit),
        ]
        if now_ms is not None:
            args.append(now_ms)
        return args

    def settle(
        self,
        reservation: Reservation,
        used: Used,
        *,
        entry: Sequence[str] = (),
        answer: tuple[str, bytes, int] | None = None,
    ) -> bool:
        """Ends a reservation once: puts what was used in its place, writes `entry` to the ledger, keeps `answer` (key,
        body and seconds), and gives up the lead among identical calls.

        False when nothing of it was done: Redis is down, or was when the call was admitted, or someone else has settled
        the call. The entry must then reach the ledger in another way, which takes each call once.
        """
        ask = reservation.ask
        if reservation.local:
            self._local.settle(ask.id, used)
            return False
        counts = (used.tokens, used.micros, used.held_ms)
        flight = (ask.flight_key or "", ask.flight or ask.id)
        held = (ask.id, self.process, reservation.receipt)
        args: list[str | int | bytes] = [*held, *counts, *flight, *(answer or NO_ANSWER), *entry]
        try:
            return bool(self._connection.run(self._settle, (), args))
        except CacheDown:
            return False

    def restore(self, account: str, since_ms: int, day: Used, month: Used) -> bool:
        """Adds what the account used in the day and the month of `since_ms` before that time, once. False when it was
        done, or Redis has begun anew since.

        Raises:
            CacheDown: Redis is not reachable.
        """
        this_day, this_month = since_ms // DAY_MS, month_of(since_ms)
        args = (account, since_ms, this_day, day.tokens, day.micros, this_month, month.tokens, month.micros)
        return bool(self._connection.run(self._restore, (), args))

    def leases(self, process: str) -> list[Lease]:
        """The calls that a process holds.

        Raises:
            CacheDown: Redis is not reachable.
        """
        found: dict[Any, Any] = self._connection.reach(lambda redis: redis.hgetall(f"forebay:leases:{process}"))
        return [Lease.of(process, call, value) for call, value in found.items()]

    def settle_orphan(self, lease: Lease, used: Used, entry: Sequence[str]) -> bool:
        """Settles a call whose process is gone. False when it is settled already.

        Raises:
            CacheDown: Redis is not reachable.
        """
        counts = (used.tokens, used.micros, used.held_ms)
        flight = (lease.flight_key, lease.flight)
        held = (lease.id, lease.process, lease.receipt)
        args: list[str | int | bytes] = [*held, *counts, *flight, *NO_ANSWER, *entry]
        return bool(self._connection.run(self._settle, (), args))


def _facts(ask: Ask, deadline: int) -> str:
    return to_json(
        (
            ask.request_id,
            ask.tenant,
            ask.tenant_id,
            ask.subject,
            ask.model,
            ask.kind,
            ask.started_ms,
            deadline,
            ask.flight_key or "",
            ask.flight or ask.id,
        )
    ).decode()


def _hit_entry(ask: Ask, route: str) -> bytes:
    """The call as a `ledger.Entry`, in case its answer is kept: JSON to which admit.lua adds the end."""
    entry = {
        "id": ask.id,
        "request_id": ask.request_id,
        "tenant": ask.tenant,
        "tenant_id": ask.tenant_id,
        "subject": ask.subject,
        "model": ask.model,
        "kind": ask.kind,
        "outcome": "cached",
        "started_ms": ask.started_ms,
        "duration_ms": max(0, time.time_ns() // 1_000_000 - ask.started_ms),
        "cache": "hit",
        "route": route,
    }
    return to_json(entry)[:-1]


def _reservation(ask: Ask, reply: list[Any]) -> Reservation:
    """What admit.lua answered."""
    code, wait, cached, leader, receipt = reply[:5]
    refused = None
    if code:
        account: Account = "key" if code < 20 else "tenant"
        refused = Refused(account, LIMITS[code % 10 - 1], None if wait < 0 else wait / 1000)
    return Reservation(
        ask,
        refused,
        cached and Kept.of(cached),
        leader=leader and leader.decode(),
        requests=_standing(*reply[5:8]),
        tokens=_standing(*reply[8:11]),
        receipt=receipt.decode(),
        budget_used=None if reply[11:13] == [-1, -1] else (max(0, reply[11]) / 1000, max(0, reply[12]) / 1000),
        unknown_past=_unknown_past(*reply[13:15]),
        settled=bool(reply[15]),
    )


def _unknown_past(subject_since: int, tenant_since: int) -> tuple[tuple[Account, int], ...]:
    if not subject_since and not tenant_since:
        return ()
    both: tuple[tuple[Account, int], ...] = (("key", subject_since), ("tenant", tenant_since))
    return tuple(one for one in both if one[1])


def _standing(limit: int, left: int, reset: int) -> Standing | None:
    return None if limit < 0 else Standing(limit, left, reset / 1000)
