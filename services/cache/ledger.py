"""What is written down of each call, and the stream in Redis in which it waits for SQL.

`settle.lua` adds an entry in the same round trip that settles the quotas, so that a call is in the ledger exactly
when it is settled. The stream has no expiry and nothing trims it: an entry leaves it when SQL has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pydantic_core import from_json, to_json
from redis import Redis
from redis.exceptions import ResponseError

from services.cache.connection import Connection

STREAM = "forebay:ledger"
"""Key of the stream that `settle.lua` adds to."""
_FIELD = "entry"


@dataclass(frozen=True)
class Entry:
    """One call, as it ended. Money is in whole micro-units of the currency, times in milliseconds."""

    id: str
    """The gateway's own id of the call, never given twice: what makes each call one row, however often it is sent."""
    request_id: str
    """The client's `X-Request-Id`, which may repeat."""
    tenant: str
    tenant_id: str
    subject: str
    """Whose call: `key:<id>`, `user:<id>`, `oidc:<hash>`."""
    model: str
    kind: str
    """`chat`, `text`, …"""
    outcome: str
    """How it ended, as the metrics name it; `gateway_lost` where the gateway died and no pod knew the end."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Those of the prompt that a pod's prefix cache spared."""
    completion_tokens: int = 0
    started_ms: int = 0
    """Unix time at arrival."""
    duration_ms: int = 0
    ttft_ms: int | None = None
    """Arrival to first token; None where there was none."""
    compute_seconds: float | None = None
    """The call's part of the time that the pods' steps took; None where the engine doesn't tell."""
    energy_joules: float | None = None
    upstream: str = ""
    """The pod that ended it; empty where none was asked."""
    cost_micros: int = 0
    saved_micros: int = 0
    """What the answer would have cost, had it not been in the response cache."""
    cache: str = ""
    """`hit`, `miss`, `bypass`, …"""
    retries: int = 0
    resumes: int = 0
    route: str = ""
    """Why it went there, as `X-Forebay-Route` says it."""

    def fields(self) -> list[str]:
        """Names and values in turn, as XADD takes them. One field of JSON: half the work of one for each, for both
        sides, and a gateway of another version reads what it knows of it."""
        return [_FIELD, to_json(vars(self)).decode()]

    @classmethod
    def of(cls, fields: Mapping[Any, Any]) -> Entry:
        """The entry that `fields` made, also by a gateway of another version.

        Raises:
            ValueError: it is none.
        """
        raw = fields.get(_FIELD.encode(), fields.get(_FIELD))
        try:
            said = from_json(raw)
            return cls(**{name: value for name, value in said.items() if name in _NAMES})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not an entry of the ledger: {error}") from error


_NAMES = frozenset(field.name for field in fields(Entry))


GROUP = "sql"
"""The consumer group: each entry is given to one of the gateways, which answers for it until SQL has it."""
UNREADABLE = "forebay:ledger:unreadable"
"""Entries that SQL or this version can't take, with the reason, for a person to look at; the newest thousand."""
IDLE_MS = 30_000
"""After so long in the hands of a gateway an entry is given to another, whatever has become of the first."""

Waiting = tuple[bytes, Mapping[Any, Any]]
"""An entry's id in the stream, and its fields."""


@dataclass(frozen=True)
class Lag:
    """How far SQL is behind. `oldest` is the age in seconds of the entry that has waited longest, 0 where none does."""

    entries: int
    oldest: float


class Stream:
    """The stream as one gateway process reads it. Every method raises `CacheDown` while Redis can't be reached."""

    def __init__(self, connection: Connection, consumer: str) -> None:
        self._connection = connection
        self._consumer = consumer

    def take(self, count: int, *, again: bool = False) -> list[Waiting]:
        """Up to `count` entries that nobody else is given; with `again`, those that we were given and have still."""

        def read(redis: Redis) -> Any:
            return redis.xreadgroup(GROUP, self._consumer, {STREAM: "0" if again else ">"}, count=count)

        try:
            found = self._connection.reach(read)
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            self._make_group()
            found = self._connection.reach(read)
        return [(number, fields or {}) for _, entries in _pairs(found) for number, fields in entries]

    def inherit(self, count: int) -> list[Waiting]:
        """Up to `count` entries that another gateway has had for `IDLE_MS`; they are ours now."""

        def claim(redis: Redis) -> Any:
            return redis.xautoclaim(STREAM, GROUP, self._consumer, IDLE_MS, count=count)

        try:
            return [(number, fields or {}) for number, fields in self._connection.reach(claim)[1]]
        except ResponseError as error:  # nothing was ever settled
            if not str(error).startswith("NOGROUP"):
                raise
            return []

    def add(self, entries: Iterable[Entry]) -> None:
        """Adds entries that did not get here by `settle.lua`."""

        def add(redis: Redis) -> None:
            with redis.pipeline(transaction=False) as pipeline:
                for entry in entries:
                    fields: dict[Any, Any] = dict([entry.fields()])
                    pipeline.xadd(STREAM, fields)
                pipeline.execute()

        self._connection.reach(add)

    def finish(self, numbers: Iterable[bytes], unreadable: Iterable[tuple[Waiting, str]] = ()) -> None:
        """Takes entries out, once SQL has them; puts those that it can't take aside."""
        done, bad = list(numbers), list(unreadable)

        def finish(redis: Redis) -> None:
            with redis.pipeline(transaction=True) as pipeline:
                for (number, fields), reason in bad:
                    aside = {"reason": reason, **{_text(name): value for name, value in fields.items()}}
                    pipeline.xadd(UNREADABLE, aside, maxlen=1000)  # type: ignore[arg-type]
                    done.append(number)
                if done:
                    pipeline.xack(STREAM, GROUP, *done)
                    pipeline.xdel(STREAM, *done)
                pipeline.execute()

        self._connection.reach(finish)

    def leave(self, consumer: str | None = None) -> bool:
        """Takes this consumer, or a dead one, out of the group. False where something is still in its hands."""
        name = consumer or self._consumer

        def leave(redis: Redis) -> bool:
            try:
                ours = [one for one in redis.xinfo_consumers(STREAM, GROUP) if one["name"] == name.encode()]
            except ResponseError:
                return True  # no stream, no group: nothing to leave
            if ours and ours[0]["pending"] == 0:
                redis.xgroup_delconsumer(STREAM, GROUP, name)
            return not ours or ours[0]["pending"] == 0

        return self._connection.reach(leave)

    def lag(self) -> Lag:
        """How far SQL is behind."""

        def look(redis: Redis) -> tuple[int, Any, Any]:
            with redis.pipeline(transaction=False) as pipeline:
                pipeline.xlen(STREAM)
                pipeline.xrange(STREAM, count=1)
                pipeline.time()
                entries, first, now = pipeline.execute()
            return entries, first, now

        entries, first, now = self._connection.reach(look)
        if not first:
            return Lag(0, 0.0)
        added = int(first[0][0].split(b"-")[0]) / 1000
        return Lag(entries, max(0.0, now[0] + now[1] / 1e6 - added))

    def _make_group(self) -> None:
        def make(redis: Redis) -> None:
            try:
                redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):  # another gateway was faster
                    raise

        self._connection.reach(make)


def _pairs(found: Any) -> Iterable[tuple[Any, Any]]:
    """The streams of a reply with their entries: RESP2 has a list of pairs, RESP3 a map of lists."""
    if isinstance(found, dict):
        return [(name, entries[0] if entries else []) for name, entries in found.items()]
    return found or []


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
