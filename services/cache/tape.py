"""What stands on a call's tape, without I/O: who writes it, its events in batches, how it ended."""

from __future__ import annotations

import hashlib
import hmac
import json
from array import array
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from services.common.errors import ApiError
from services.common.sse import dump

SEPARATOR = b"\0"
"""Between the events of a batch; JSON has no such byte."""


@dataclass(frozen=True)
class Begin:
    """Who writes from here on, and by what the answer is drawn, so that another can go on with it.

    request: a digest of the request. seed: None where the request has its own, or needs none.
    """

    process: str
    call: str
    model: str
    request: str = ""
    seed: int | None = None

    def fields(self) -> dict[bytes, bytes]:
        return {b"begin": json.dumps(asdict(self)).encode()}


@dataclass(frozen=True)
class Batch:
    """Events that follow each other, the first of which has the number `first`, counted from 1.

    tokens: the ids of the tokens whose text they complete. prompt_tokens, completion_tokens: counts after them.
    """

    first: int
    events: tuple[bytes, ...]
    tokens: array[int]
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def fields(self) -> dict[bytes, bytes]:
        return {
            b"first": b"%d" % self.first,
            b"events": SEPARATOR.join(self.events),
            b"tokens": self.tokens.tobytes(),
            b"counts": b"%d %d" % (self.prompt_tokens, self.completion_tokens),
        }


@dataclass(frozen=True)
class End:
    """How the writer's call ended (`outcome`, as in the metrics); `body` is an answer that was not streamed, or, with
    another status than 200, the error, and `retry_after` the header that went with it."""

    outcome: str
    body: bytes = b""
    status: int = 200
    retry_after: str = ""

    @classmethod
    def failed(cls, outcome: str, error: ApiError) -> End:
        """That of a call that ended with an error before it had an answer."""
        return cls(outcome, dump(error.envelope()), error.status, error.headers.get("Retry-After", ""))

    def fields(self) -> dict[bytes, bytes]:
        told = {b"status": b"%d" % self.status, b"retry": self.retry_after.encode()}
        return {b"end": self.outcome.encode(), b"body": self.body, **told}


Entry = Begin | Batch | End


def read_entry(fields: Mapping[bytes, bytes]) -> Entry:
    """An entry from its fields in Redis."""
    if b"begin" in fields:
        return Begin(**json.loads(fields[b"begin"]))
    if b"end" in fields:
        return End(fields[b"end"].decode(), fields[b"body"], int(fields[b"status"]), fields[b"retry"].decode())
    tokens = array("i")
    tokens.frombytes(fields[b"tokens"])
    prompt_tokens, completion_tokens = map(int, fields[b"counts"].split())
    events = tuple(fields[b"events"].split(SEPARATOR))
    return Batch(int(fields[b"first"]), events, tokens, prompt_tokens, completion_tokens)


def tape_key(salt: str, call: str) -> str:
    """Where a call's tape lies. Keyed by the tenant's salt: another tenant cannot name it, though it knows the id."""
    return f"forebay:tape:{hmac.new(salt.encode(), call.encode(), hashlib.sha256).hexdigest()[:40]}"


class Writer:
    """A tape that this process writes. `drain` gives what is new since it was called last, None when nothing is;
    `begin` is asked for the first entry when there is something to write, and is None where it stands there already.
    """

    def __init__(
        self, key: str, ttl: float, drain: Callable[[], Batch | None], begin: Callable[[], Begin] | None
    ) -> None:
        self.key = key
        self.ttl_ms = int(ttl * 1000)
        self.ended: End | None = None
        self.lost = False
        """Redis was down, so that a piece of the tape is missing and the rest is not written."""
        self._drain = drain
        self._begin = begin

    def news(self) -> list[dict[bytes, bytes]]:
        """The entries to be written now."""
        entries: list[Entry] = []
        batch = self._drain()
        if self._begin is not None and (batch is not None or self.ended is not None):
            entries.append(self._begin())
            self._begin = None
        if batch is not None:
            entries.append(batch)
        if self.ended is not None:
            entries.append(self.ended)
        return [entry.fields() for entry in entries]
