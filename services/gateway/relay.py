"""A stream on its way to the client, in one piece, though the pod that makes it may be lost meanwhile.

What the client has is known exactly, by the tokens in the notes of the chunks that were relayed. Another pod goes on
after them, and draws the tokens that the lost one would have drawn, since the call has a seed.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator

from gevent import GreenletExit

from services.common import sse
from services.common.errors import ApiError, ClientGone, DeadlineExceeded, ShuttingDown, UpstreamUnavailable
from services.common.wire import Answer, Usage
from services.gateway.call import Call
from services.gateway.ending import ending, routed
from services.gateway.hold import Hold
from services.gateway.leg import Leg
from services.gateway.observe import GivenUp, observe
from services.gateway.outcome import outcome_of
from services.gateway.resume import CHOICES, Choices, continued
from services.gateway.trip import Trip
from services.gateway.upstreams.exchange import Broken

SHUT_DOWN = b'"code":"upstream_unavailable"'
"""In the error by which a pod gives its streams up because it ends."""


def relay(trip: Trip, hold: Hold, leg: Leg | None, last: sse.Event | None = None) -> Iterator[sse.Event]:
    """The events for the client, from the first of `leg` to [DONE], or to an error that says why there are no more.

    Args:
        leg: where the stream begins; None when a pod is yet to be waited for.
        last: the last chunk that the client has, where somebody else began the stream; `Spent` then has its tokens.
    """
    call, spent = trip.call, trip.spent
    spent.outcome = "client_gone"  # until the stream says otherwise
    several = Choices(call) if call.request.choices > 1 else None
    try:
        if leg is not None:
            events = leg.events() if several is None else several.watch(leg.events())
        else:
            events = yield from _rest(trip, hold, Broken("its gateway was lost"), last, several)
        while spent.outcome == "client_gone":
            try:
                for event in events:
                    if observe(event, call, spent):
                        last = event
                        yield event
                    elif event.comment:
                        yield event
                if spent.outcome == "client_gone":
                    raise Broken("it ended the stream before its end")
            except Broken as fault:
                if spent.outcome == "client_gone" and not trip.client_gone:
                    events = yield from _rest(trip, hold, fault, last, several)
                else:
                    return
    except (Broken, ApiError, TimeoutError, GreenletExit) as fault:
        spent.outcome, last_words = _failed(fault, call, spent.route)
        if last_words is not None:
            yield last_words


def _failed(fault: BaseException, call: Call, route: str) -> tuple[str, sse.Event | None]:
    """The outcome of a stream that ends by `fault`, and the event that tells the client, if there still is one."""
    if isinstance(fault, GivenUp):
        return "upstream_error", sse.Event(routed(fault.event.data or b"", route))
    if isinstance(fault, Broken):
        come_again = fault.__cause__.retry_after if isinstance(fault.__cause__, ApiError) else None
        error: ApiError = UpstreamUnavailable(
            "The pod that worked on the request was lost in mid-stream.", retry_after=come_again
        )
    elif isinstance(fault, TimeoutError | DeadlineExceeded):
        error = call.too_late()
    elif isinstance(fault, ApiError):
        error = fault
    else:
        return "error", ending(ShuttingDown(), route)
    return outcome_of(error), None if isinstance(error, ClientGone) else ending(error, route)


def _rest(
    trip: Trip, hold: Hold, fault: Broken, last: sse.Event | None, several: Choices | None
) -> Generator[sse.Event, None, Iterator[sse.Event]]:
    """What the client still lacks after `last`, where its pod has failed by `fault`; comments while it waits for one.

    Raises:
        Broken: `fault`, as nobody can go on: the pod sent no notes, no other pod is left, or there are several choices
            and it was another gateway that relayed them.
        ApiError: the client has nothing yet, and no pod takes the call.
        DeadlineExceeded: no pod took the call in time.
        ClientGone: the client hung up meanwhile.
    """
    call, spent = trip.call, trip.spent
    if isinstance(fault, GivenUp):
        trip.given_up(shut_down=SHUT_DOWN in (fault.event.data or b""))
    else:
        trip.lost(str(fault))
    if spent.usage is not None:
        return iter([sse.Event(b"[DONE]")])
    if last is None:
        events = (yield from hold.leg(trip)).events()
        return events if several is None else several.watch(events)
    if not spent.prompt_tokens or (several is not None and not several.begun):
        raise fault
    data = last.data or b""
    chunk = json.loads(data)
    if several is not None:
        trip.count_resume()
        return several.rest(trip, hold, chunk)
    if chunk["choices"][0]["finish_reason"] is not None:
        answer = Answer(call.kind, chunk["id"], chunk["model"], chunk["created"])
        usage = answer.usage(Usage(spent.prompt_tokens, spent.completion_tokens))
        return iter([sse.Event(sse.dump(usage)), sse.Event(b"[DONE]")])
    try:
        leg = yield from hold.leg(trip, resume=spent.token_ids)
    except ClientGone:
        raise
    except ApiError as refusal:
        raise call.too_late() if refusal.status == DeadlineExceeded.status else fault from refusal
    trip.count_resume()
    return continued(leg.events(), len(spent.token_ids), data[: data.index(CHOICES)])
