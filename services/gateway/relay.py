"""A stream on its way to the client, in one piece, though the pod that makes it may be lost meanwhile.

What the client has is known exactly, by the tokens in the notes of the chunks that were relayed. Another pod goes on
after them, and draws the tokens that the lost one would have drawn, since the call has a seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from services.common import sse
from services.common.errors import ApiError, ClientGone, DeadlineExceeded, UpstreamUnavailable
from services.common.wire import Answer, Usage
from services.gateway.leg import Leg
from services.gateway.observe import GivenUp, observe
from services.gateway.trip import Trip
from services.gateway.upstreams.exchange import Broken

CHOICES = b'"choices":'
"""Ends what all chunks of an answer have in common: id, time and model."""


def relay(trip: Trip, leg: Leg) -> Iterator[sse.Event]:
    """The events for the client, from the first of `leg` to [DONE], or to an error that says why there are no more."""
    call, spent = trip.call, trip.spent
    spent.outcome = "client_gone"  # until the stream says otherwise
    events, last = leg.events(), None
    try:
        while spent.outcome == "client_gone":
            try:
                for event in events:
                    if observe(event, call, spent):
                        last = event
                        yield event
                if spent.outcome == "client_gone":
                    raise Broken("it ended the stream before its end")
            except Broken as fault:
                if spent.outcome == "client_gone" and not trip.client_gone:
                    events = _rest(trip, fault, last)
                else:
                    return
    except ClientGone:
        return
    except (TimeoutError, DeadlineExceeded):
        spent.outcome = "timeout"
        yield _error_event(call.too_late())
    except Broken as fault:
        spent.outcome = "upstream_error"
        lost = UpstreamUnavailable("The pod that worked on the request was lost in mid-stream.")
        yield fault.event if isinstance(fault, GivenUp) else _error_event(lost)


def _rest(trip: Trip, fault: Broken, last: sse.Event | None) -> Iterator[sse.Event]:
    """What the client still lacks after `last`, where its pod has failed by `fault`.

    Raises:
        Broken: `fault`, as nobody can go on: the pod sent no notes, there are several choices, or no other pod is left.
        DeadlineExceeded: no pod took the call in time.
        ClientGone: the client hung up meanwhile.
    """
    call, spent = trip.call, trip.spent
    if not isinstance(fault, GivenUp):
        trip.lost(str(fault))
    if spent.usage is not None:
        return iter([sse.Event(b"[DONE]")])
    try:
        if last is None:
            return trip.go_on().events()
        if not spent.prompt_tokens or call.request.choices > 1:
            raise fault
        data = last.data or b""
        chunk = json.loads(data)
        if chunk["choices"][0]["finish_reason"] is not None:
            answer = Answer(call.kind, chunk["id"], chunk["model"], chunk["created"])
            usage = answer.usage(Usage(spent.prompt_tokens, spent.completion_tokens))
            return iter([sse.Event(sse.dump(usage)), sse.Event(b"[DONE]")])
        events = trip.go_on(resume=spent.token_ids).events()
    except ClientGone:
        raise
    except ApiError as refusal:
        raise call.too_late() if refusal.status == DeadlineExceeded.status else fault from None
    trip.count_resume()
    return _continued(events, len(spent.token_ids), data[: data.index(CHOICES)])


def _continued(events: Iterator[sse.Event], given: int, head: bytes) -> Iterator[sse.Event]:
    """The events of a pod that goes on after `given` tokens: under the head of the first pod's chunks, and without the
    opening chunk, which the client has.

    Raises:
        Broken: the pod begins again, since it does not know how to go on.
    """
    first = True
    for event in events:
        data, note = event.data or b"", event.note or {}
        if first and note.get("completion_tokens", -1) < given:
            raise Broken("it cannot resume an answer")
        first = False
        if note.get("completion_tokens") != 0:
            _, choices, rest = data.partition(CHOICES)
            yield sse.Event(head + choices + rest, event.note) if choices else event


def _error_event(error: ApiError) -> sse.Event:
    return sse.Event(sse.dump(error.envelope()))
