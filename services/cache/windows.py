"""Limits, what a call asks of them, and what it is given."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal

from services.cache.kept import Kept
from services.common.ids import new_id

MINUTE_MS = 60_000
USUAL_MS = 1000
"""How long a call holds its slot, as long as none has told."""

LimitName = Literal[
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent",
    "tokens_per_day",
    "tokens_per_month",
    "micros_per_day",
    "micros_per_month",
]
Account = Literal["key", "tenant"]


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
        """A fraction of the limits, at least one of each that is not zero."""
        parts = (getattr(self, name) for name in LIMITS)
        return Limits(*(max(1, int(part * fraction)) if part else part for part in parts))

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """As admit.lua reads them."""
        return tuple("" if (limit := getattr(self, name)) is None else str(limit) for name in LIMITS)

    @property
    def budget(self) -> bool:
        """Whether there is a limit of a day or a month."""
        longer = self.tokens_per_day, self.tokens_per_month, self.micros_per_day, self.micros_per_month
        return any(limit is not None for limit in longer)


LIMITS: tuple[LimitName, ...] = tuple(one.name for one in fields(Limits))  # type: ignore[misc]
"""Their names, in the order in which admit.lua numbers them."""


@dataclass(slots=True)
class Ask:
    """What a call asks for: room for `tokens` and `micros` at most, which is all that it may use."""

    subject: str
    limits: Limits
    tokens: int
    micros: int = 0
    id: str = field(default_factory=new_id)
    tenant: str = ""
    tenant_id: str = ""
    tenant_limits: Limits = Limits()
    request_id: str = ""
    model: str = ""
    kind: str = ""
    started_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """Unix time at arrival."""
    timeout_ms: int = MINUTE_MS
    """After so long from arrival it is over, however it went."""
    answer_key: str | None = None
    """Where its answer may lie; None where it is not looked up."""
    flight_key: str | None = None
    """By which identical calls in flight know each other; None where it is computed for itself."""
    flight: str = ""
    """What this call puts there where it leads."""
    hit_route: str | None = None
    """What the ledger is to say of the call's way where its answer is kept: it is then settled as it is admitted. None
    where it is settled like any other."""
    prices: tuple[int, int, int] = (0, 0, 0)
    """Micro-units for a million tokens of a prompt, of its cached ones and of an answer: what a kept one spares."""

    @property
    def deadline_ms(self) -> int:
        return self.started_ms + self.timeout_ms


@dataclass(slots=True)
class Used:
    """What a call used in the end. `held_ms` is how long it took, from which waits for a slot are estimated."""

    tokens: int
    micros: int = 0
    held_ms: int = USUAL_MS


@dataclass(frozen=True)
class Refused:
    """Which limit of whose refuses a call: of several the one that takes longest."""

    account: Account
    limit: LimitName
    wait: float | None
    """Seconds until the call fits if nobody else takes what it needs (an estimate for `concurrent`); None where it is
    larger than the limit, so that waiting does not help."""


@dataclass(frozen=True)
class Standing:
    """How an account stands with a limit of a minute, after this call."""

    limit: int
    left: int
    reset: float
    """Seconds until all of it is there again."""


@dataclass(slots=True)
class Reservation:
    """The answer to "may I?"."""

    ask: Ask
    refused: Refused | None = None
    kept: Kept | None = None
    """The answer, where it was kept."""
    settled: bool = False
    """Whether the call is settled already, and in the ledger, as its answer was kept."""
    leader: str | None = None
    """The `flight` of the identical call that is being computed, where there is one."""
    requests: Standing | None = None
    """Of the tighter of key and tenant; None where neither has such a limit."""
    tokens: Standing | None = None
    receipt: str = ""
    """What was taken of which counters: settle.lua reads it."""
    budget_used: tuple[float, float] | None = None
    """Part of the tenant's budgets of the day and of the month that was used or reserved before; None where it has
    none, or nobody knows."""
    unknown_past: tuple[tuple[Account, int], ...] = ()
    """Whose budgets Redis counts only since a Unix time in ms, as they are new or it has lost its data."""
    local: bool = False
    """Whether Redis was down, so that this process alone knows of it."""

    @property
    def cached(self) -> bytes | None:
        """The body of the answer that was kept."""
        return None if self.kept is None else self.kept.body
