"""What a client may come back for: a stream's numbered events, or a whole body, written to the call's tape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from services.cache.tape import Batch, Begin, End, Writer, tape_key
from services.common import sse
from services.common.errors import ApiError
from services.gateway.call import Call, Reply, Spent
from services.gateway.identify import Principal
from services.gateway.parts import Gateway

ERROR = b'{"error"'
"""Begins the data of an event that ends a stream, and is no part of the answer."""


class Recording:
    """The tape `name` of what goes to the client of `call`, from its event `number` + 1 on.

    request: the digest of what the client asked. ttl: seconds that the tape is kept after the call has ended.
    """

    def __init__(
        self, gateway: Gateway, principal: Principal, call: Call, spent: Spent, *, name: str, request: str, ttl: float
    ) -> None:
        self.name = name
        self.key = tape_key(principal.cache_salt, name)
        self.ttl = call.timeout + ttl
        self._tapes = gateway.tapes
        self._call = call
        self._spent = spent
        self.request = request
        self._writer: Writer | None = None
        self._number = 0
        self._pending: list[bytes] = []
        self._tokens = 0
        self._body = b""

    def begin(self) -> Begin:
        """What a tape of this call begins with."""
        spent = self._spent
        return Begin(self._tapes.process, self._call.id, spent.model or self._call.model, self.request, spent.seed)

    def write(self, *, begun: bool = False, number: int = 0, tokens: int = 0) -> None:
        """Writes the tape from here on: what comes after this event and so many tokens. `begun`: it says already that
        this call writes it."""
        self._number, self._tokens = number, tokens
        self._writer = Writer(self.key, self.ttl, self._drain, None if begun else self.begin)
        self._tapes.write(self._writer)

    def skip(self, number: int) -> None:
        """The client has the events up to this one."""
        self._number = number

    def add(self, event: sse.Event) -> None:
        """Takes in an event that the client has already."""
        assert event.data is not None
        self._number += 1
        if self._writer is not None and not self._writer.lost:
            self._pending.append(event.data)

    def attach(self, reply: Reply) -> None:
        """Has the reply's events numbered and written, or its body."""
        self._body = reply.body or b""
        if reply.events is not None:
            reply.frames = self._frames

    def end(self, outcome: str, error: BaseException | None) -> None:
        """The call has ended, and so does what it writes."""
        if self._writer is None or self._writer.lost:
            return
        if isinstance(error, ApiError):
            self._tapes.end(self._writer, End.failed(outcome, error))
        else:
            self._tapes.end(self._writer, End(outcome, self._body if outcome in {"ok", "cached"} else b""))

    def _frames(self, events: Iterator[sse.Event], frame: Callable[[sse.Event], bytes]) -> Iterator[bytes]:
        """The events in bytes, each under its number where the client asked for them; what has no data is no event, and
        an error is none to come back to."""
        head = b"id: %s:" % self.name.encode() if self._call.resumable else b""
        for event in events:
            data = event.data
            if data is None or data.startswith(ERROR):
                if shown := frame(event):
                    yield shown
                continue
            self.add(event)
            if shown := frame(event):
                yield b"%s%d\n%s" % (head, self._number, shown) if head else shown

    def _drain(self) -> Batch | None:
        if not self._pending:
            return None
        spent, events = self._spent, tuple(self._pending)
        self._pending.clear()
        tokens = spent.token_ids[self._tokens :]
        self._tokens += len(tokens)
        return Batch(self._number - len(events) + 1, events, tokens, spent.prompt_tokens, spent.completion_tokens)
