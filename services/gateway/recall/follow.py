"""An answer that another call makes or has made, given to this one from its tape, and gone on with where it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from gevent import GreenletExit

from services.cache.connection import CacheDown
from services.cache.tape import Batch, Begin, End
from services.common import sse
from services.common.errors import ApiError, ClientGone, RelayedError, ShuttingDown, UpstreamUnavailable
from services.common.wire import Answer
from services.gateway.admit import Admission
from services.gateway.call import Call, Reply, Spent
from services.gateway.dispatch import resume
from services.gateway.ending import ending, routed
from services.gateway.identify import Principal
from services.gateway.observe import observe
from services.gateway.outcome import outcome_of
from services.gateway.parts import Gateway
from services.gateway.recall.exact import chunks, replay, text_of, whole_answer
from services.gateway.recall.flights import TTL, flight_tape
from services.gateway.recall.playback import Playback, events_of
from services.gateway.recall.record import ERROR
from services.gateway.resume import CHOICES


@dataclass
class Following:
    """How a call reads a tape.

    how: what `Spent.recalled` says of it. begin, ttl: what it writes first if it must go on, and for how long that is
    kept. take_over: called before it does. skip: events that its client has already; what it must make again of them,
    because the tape ended before, is handed to `again`. anew: the answer gets an id and a
    time of its own, and may be read in the other form, whole or streamed; and an error of the writer is its own.
    """

    playback: Playback
    how: str
    begin: Begin
    ttl: float
    take_over: Callable[[Playback], None]
    again: Callable[[sse.Event], None] = lambda _event: None
    skip: int = 0
    anew: bool = False

    def next(self) -> Batch | End | None:
        return self.playback.next(self.begin, self.ttl, errors=self.anew)


def follow(gateway: Gateway, principal: Principal, call: Call, admission: Admission, spent: Spent) -> Reply | None:
    """The answer that an identical call is getting; None where this one is to get it by itself.

    Raises:
        ApiError: why the other one got none.
    """
    leader, _, process = (admission.leader or "").partition(" ")
    salt = gateway.responses.salt(principal.cache_salt, share=principal.share_cache)
    try:
        playback = Playback(
            gateway, call, flight_tape(salt, leader), (leader, process), answer_key=admission.answer_key or ""
        )
    except CacheDown:
        return None

    def take_over(playback: Playback) -> None:
        if playback.taken:
            gateway.flights.write_on(call, spent, playback.key, playback.count)

    begin = Begin(gateway.tapes.process, call.id, call.model)
    following = Following(playback, "coalesced", begin, call.timeout + TTL, take_over, anew=True)
    return read(gateway, principal, call, spent, following)


def read(gateway: Gateway, principal: Principal, call: Call, spent: Spent, following: Following) -> Reply | None:
    """The reply from a tape; None where there is nothing on it, nobody writes it, and the call is to begin anew.

    Raises:
        ApiError: the writer failed, the call's time is over, or its client hung up.
    """
    playback = following.playback
    try:
        entry = following.next()
        if call.streamed and entry is not None:
            _fail(entry, spent)
            spent.recalled = following.how
            reply = Reply()
            reply.on_close.append(playback.close)
            reply.events = _stream(gateway, principal, call, spent, following, entry=entry, reply=reply)
            return reply
        spent.recalled = following.how  # whatever becomes of it, what is read is not this call's
        body = _whole(call, spent, following, entry)
    except GreenletExit:
        playback.close()
        raise ShuttingDown from None
    except BaseException:
        playback.close()
        raise
    playback.close()
    if body is None:
        spent.recalled = None
        following.take_over(playback)
        return None
    spent.outcome, spent.answer = "cached", body
    return Reply(body=body)


def _whole(call: Call, spent: Spent, following: Following, entry: Batch | End | None) -> bytes | None:
    """The answer's body, when it is all there; None where it is not going to be."""
    while entry is not None:
        if isinstance(entry, End):
            _fail(entry, spent)
            if entry.body:
                return replay(call, spent, entry.body).body if following.anew else entry.body
            break
        for event in events_of(entry):
            observe(event, call, spent)
        if spent.outcome == "ok":
            return whole_answer(call, spent)
        entry = following.next()
    spent.restart()
    return None


def _stream(
    gateway: Gateway,
    principal: Principal,
    call: Call,
    spent: Spent,
    following: Following,
    *,
    entry: Batch | End,
    reply: Reply,
) -> Iterator[sse.Event]:
    """The events for the client, from those of `entry` to [DONE], or to an error that says why there are no more."""
    spent.outcome = "client_gone"  # until the tape says otherwise
    try:
        last, seen = yield from _told(call, spent, following, entry)
        if spent.outcome != "client_gone":
            return
        following.playback.close()
        if last is not None and call.request.choices > 1:
            raise UpstreamUnavailable("A stream of several choices can't be gone on with.")
        spent.recalled, spent.given = None, spent.completion_tokens
        following.take_over(following.playback)
        rest = resume(gateway, principal, call, spent, last)
        reply.on_close.append(rest.close)
        for event in rest.events or ():
            if seen < following.skip and event.data is not None and not event.data.startswith(ERROR):
                seen += 1
                following.again(event)
            else:
                yield event
    except (ApiError, GreenletExit) as fault:
        error = fault if isinstance(fault, ApiError) else ShuttingDown()
        spent.outcome = outcome_of(fault)
        if not isinstance(error, ClientGone):
            yield ending(error, spent.route)


def _told(
    call: Call, spent: Spent, following: Following, entry: Batch | End | None
) -> Generator[sse.Event, None, tuple[sse.Event | None, int]]:
    """What the tape tells, without what the client has. Returns the last chunk, and how many there were; where the
    stream is not at its end when the tape is, the outcome is still open."""
    answer = Answer.new(call.kind, call.model)
    last: sse.Event | None = None
    seen = 0
    while entry is not None:
        if isinstance(entry, End):
            yield from _ending(call, spent, answer, entry, last)
            break
        for event in events_of(entry):
            seen += 1
            shown = _under(answer, event) if following.anew else event
            if observe(shown, call, spent):
                last = shown
                if seen > following.skip:
                    yield shown
        if spent.outcome == "ok":
            spent.outcome = "cached"
            break
        entry = following.next()
    return last, seen


def _ending(call: Call, spent: Spent, answer: Answer, end: End, last: sse.Event | None) -> Iterator[sse.Event]:
    """What a client that has the events up to `last` gets of an answer that was not streamed, or of an error."""
    if end.status != 200:
        spent.outcome = end.outcome
        yield sse.Event(routed(end.body, spent.route))
        return
    body, sent = json.loads(end.body or b"null"), "".join(spent.text)
    if body is None or not text_of(body).startswith(sent):
        spent.outcome = "upstream_error"
        lost = UpstreamUnavailable("The pod that worked on the request was lost in mid-stream.")
        yield ending(lost, spent.route)
        return
    for data in chunks(call, answer, body, None if last is None else sent):
        yield sse.Event(data)
    replay(call, spent, end.body)


def _under(answer: Answer, event: sse.Event) -> sse.Event:
    """The event with the head of another answer, whose id and time are its own."""
    _, choices, rest = (event.data or b"").partition(CHOICES)
    if not choices:
        return event
    head = sse.dump({"id": answer.id, "object": _object(answer), "created": answer.created, "model": answer.model})
    return sse.Event(head[:-1] + b"," + choices + rest, event.note)


def _object(answer: Answer) -> str:
    return "chat.completion.chunk" if answer.kind == "chat" else "text_completion"


def _fail(entry: Batch | End, spent: Spent) -> None:
    """Raises the error that the writer ended with, if it did."""
    if isinstance(entry, End) and entry.status != 200:
        spent.outcome = entry.outcome
        raise RelayedError(entry.status, json.loads(entry.body), retry_after=entry.retry_after or None)
