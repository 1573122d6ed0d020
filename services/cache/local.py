"""The accounts' counters without I/O: the rules of `lua/admit.lua` and `lua/settle.lua` in this process' memory.

Used while Redis is down, and as the model that the scripts are tested against.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

from services.cache.windows import (
    MINUTE_MS,
    USUAL_MS,
    Account,
    Ask,
    LimitName,
    Limits,
    Refused,
    Reservation,
    Standing,
    Used,
)

DAY_MS = 86_400_000


@dataclass(slots=True)
class _Taken:
    """What one account gave to one call; zeros where it has no such limit."""

    name: str
    ends: int = 0
    tokens: int = 0
    day: int = 0
    month: int = 0
    slot: bool = False


@dataclass(slots=True)
class _Counters:
    ends: int = 0
    requests: int = 0
    tokens: int = 0
    day: int = 0
    day_tokens: int = 0
    day_micros: int = 0
    month: int = 0
    month_tokens: int = 0
    month_micros: int = 0
    running: dict[str, int] = field(default_factory=dict)
    """Deadlines by call."""
    held_ms: int | None = None


class Windows:
    """The counters of accounts. A minute is born with an account's first call and ends as a whole; days and months are
    UTC's. `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._accounts: dict[str, _Counters] = {}
        self._leases: dict[str, tuple[int, int, list[_Taken]]] = {}
        self._sweep_at = 0

    def reserve(self, ask: Ask, *, computed: bool = True, cached: bool = False) -> Reservation:
        """Takes all that the call may use, or nothing and says why. `computed`: False for a call whose answer others
        compute, or which is `cached` and so needs no slot either."""
        now = int(self._clock() * 1000)
        self._sweep(now)
        tokens, micros = (ask.tokens, ask.micros) if computed and not cached else (0, 0)
        owners: list[tuple[Account, str, Limits]] = [
            ("key", ask.subject, ask.limits),
            ("tenant", f"tenant:{ask.tenant_id}", ask.tenant_limits),
        ]
        refusals: list[Refused] = []
        takings: list[_Taken] = []
        for account, name, limits in owners:
            counters = self._counters(name, now)
            taken = _Taken(name, slot=limits.concurrent is not None and not cached)
            if limits.requests_per_minute is not None or limits.tokens_per_minute is not None:
                taken.ends = counters.ends
                taken.tokens = min(tokens, tokens if limits.tokens_per_minute is None else limits.tokens_per_minute)
            if limits.budget:
                taken.day, taken.month = counters.day, counters.month
            takings.append(taken)
            waits = [
                *_minute_waits(counters, limits, taken, tokens, now),
                *_budget_waits(counters, limits, tokens, micros, now),
            ]
            refusals += [Refused(account, limit, wait) for limit, wait in waits]
        if not refusals:
            self._leases[ask.id] = tokens, micros, takings
            for taken in takings:
                self._take(taken, ask, tokens, micros)
        standings = [self._standings(name, limits, now) for _, name, limits in owners]
        return Reservation(
            ask,
            max(refusals, key=lambda one: math.inf if one.wait is None else one.wait) if refusals else None,
            requests=_tighter([both[0] for both in standings]),
            tokens=_tighter([both[1] for both in standings]),
            local=True,
        )

    def settle(self, call: str, used: Used) -> bool:
        """Puts what was used in the place of the reservation, where its minute, day and month still run. False when the
        call was settled before."""
        lease = self._leases.pop(call, None)
        if lease is None:
            return False
        tokens, micros, takings = lease
        for taken in takings:
            counters = self._accounts.get(taken.name)
            if counters is None:
                continue
            if taken.ends and counters.ends == taken.ends:
                counters.tokens += used.tokens - taken.tokens
            if taken.day and counters.day == taken.day:
                counters.day_tokens += used.tokens - tokens
                counters.day_micros += used.micros - micros
            if taken.month and counters.month == taken.month:
                counters.month_tokens += used.tokens - tokens
                counters.month_micros += used.micros - micros
            if taken.slot:
                counters.running.pop(call, None)
                before = used.held_ms if counters.held_ms is None else counters.held_ms
                counters.held_ms = math.floor(before + (used.held_ms - before) / 8)
        return True

    def counters(self, account: str) -> dict[str, int]:
        """Each counter of an account that is not zero, by its name in Redis, and `running`, the calls that run."""
        found = self._accounts.get(account, _Counters())
        counted = {one.name: getattr(found, one.name) for one in fields(found) if one.name != "running"}
        return {name: count for name, count in {**counted, "running": len(found.running)}.items() if count}

    def _counters(self, name: str, now: int) -> _Counters:
        """The account's counters; those of a minute, day or month that is over begin anew."""
        counters = self._accounts.setdefault(name, _Counters())
        if counters.ends <= now:
            counters.ends, counters.requests, counters.tokens = now + MINUTE_MS, 0, 0
        today, month = now // DAY_MS, month_of(now)
        if counters.day != today:
            counters.day, counters.day_tokens, counters.day_micros = today, 0, 0
        if counters.month != month:
            counters.month, counters.month_tokens, counters.month_micros = month, 0, 0
        for call in [call for call, deadline in counters.running.items() if deadline <= now]:
            del counters.running[call]
        return counters

    def _take(self, taken: _Taken, ask: Ask, tokens: int, micros: int) -> None:
        counters = self._accounts[taken.name]
        if taken.ends:
            counters.requests += 1
            counters.tokens += taken.tokens
        if taken.day:
            counters.day_tokens += tokens
            counters.day_micros += micros
            counters.month_tokens += tokens
            counters.month_micros += micros
        if taken.slot:
            counters.running[ask.id] = ask.deadline_ms

    def _standings(self, name: str, limits: Limits, now: int) -> tuple[Standing | None, Standing | None]:
        counters = self._accounts[name]
        reset = (counters.ends - now) / 1000
        if not counters.requests:
            counters.ends = 0  # refused: the minute is born with the first call that is not
        found = [(limits.requests_per_minute, counters.requests), (limits.tokens_per_minute, counters.tokens)]
        one, two = (None if most is None else Standing(most, max(0, most - used), reset) for most, used in found)
        return one, two

    def _sweep(self, now: int) -> None:
        """Once a minute, forgets accounts of which nothing is left."""
        if now < self._sweep_at:
            return
        self._sweep_at = now + MINUTE_MS
        today, month = now // DAY_MS, month_of(now)
        for name, one in list(self._accounts.items()):
            spent = (one.day == today and (one.day_tokens or one.day_micros)) or (
                one.month == month and (one.month_tokens or one.month_micros)
            )
            if one.ends <= now and not one.running and not spent:
                del self._accounts[name]


def _minute_waits(
    counters: _Counters, limits: Limits, taken: _Taken, tokens: int, now: int
) -> Iterator[tuple[LimitName, float | None]]:
    """The limits of the minute, and of calls at the same time, that the call does not fit in, and for how long."""
    minute = (counters.ends - now) / 1000
    most = limits.requests_per_minute
    if most is not None and counters.requests + 1 > most:
        yield "requests_per_minute", minute if most else None
    most = limits.tokens_per_minute
    if most is not None and (counters.tokens + taken.tokens > most or (tokens and not most)):
        yield "tokens_per_minute", minute if most else None
    most = limits.concurrent
    if most is not None and taken.slot and len(counters.running) >= most:
        yield "concurrent", _slot_wait(counters, most, now) if most else None


def _budget_waits(
    counters: _Counters, limits: Limits, tokens: int, micros: int, now: int
) -> Iterator[tuple[LimitName, float | None]]:
    """The budgets that the call does not fit in, and for how long."""
    tomorrow = ((now // DAY_MS + 1) * DAY_MS - now) / 1000
    next_month = (_month_start(month_of(now) + 1) - now) / 1000
    budgets: list[tuple[LimitName, int | None, int, int, float]] = [
        ("tokens_per_day", limits.tokens_per_day, counters.day_tokens, tokens, tomorrow),
        ("tokens_per_month", limits.tokens_per_month, counters.month_tokens, tokens, next_month),
        ("micros_per_day", limits.micros_per_day, counters.day_micros, micros, tomorrow),
        ("micros_per_month", limits.micros_per_month, counters.month_micros, micros, next_month),
    ]
    for name, most, used, wanted, wait in budgets:
        if most is not None and wanted and used + wanted > most:
            yield name, wait if wanted <= most else None


def _slot_wait(counters: _Counters, most: int, now: int) -> float:
    """Seconds: as calls have lately taken, but not beyond the deadline by which a slot is free for certain."""
    deadlines = sorted(counters.running.values())
    usual = USUAL_MS if counters.held_ms is None else counters.held_ms
    return min(usual, deadlines[len(deadlines) - most] - now) / 1000


def _tighter(standings: list[Standing | None]) -> Standing | None:
    return min((one for one in standings if one is not None), key=lambda one: one.left, default=None)


def month_of(now: int) -> int:
    """The month of a Unix time in ms, as years * 12 + months."""
    day = datetime.fromtimestamp(now / 1000, UTC)
    return day.year * 12 + day.month - 1


def _month_start(month: int) -> int:
    return int(datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp()) * 1000
