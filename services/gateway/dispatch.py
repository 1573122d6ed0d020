"""Step 4, dispatch: picks a pod, sends the call there, relays what comes back, tries another pod where none took it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from gevent import GreenletExit

from services.common.errors import NoPodReady, ShuttingDown
from services.common.sse import Event
from services.gateway.call import Call, Reply, Spent
from services.gateway.identify import Principal
from services.gateway.leg import Leg
from services.gateway.observe import usage_of
from services.gateway.parts import Gateway
from services.gateway.relay import relay
from services.gateway.trip import Trip


def dispatch(gateway: Gateway, principal: Principal, call: Call, spent: Spent) -> Reply:
    """The reply of the pod that took the call; of the last one, where pods are lost meanwhile. Where none is ready the
    call is held: a stream begins at once, with comments, any other waits here.

    Raises:
        ApiError: there is none, as `Trip.go_on` says. A stream that has begun ends with an error event instead.
    """
    if gateway.moderator is not None and not spent.moderated:
        gateway.moderator.ask(call)
    trip = Trip(gateway, principal, call, _body_for_pods(call, principal), spent)
    try:
        if call.streamed:
            return _stream(gateway, trip, _first(gateway, trip))
        leg = _end_of(gateway.hold.leg(trip))
        trip.close()
    except GreenletExit:
        raise ShuttingDown from None
    spent.answer = leg.answer
    spent.usage = usage_of(leg.answer)
    return Reply(body=leg.answer)


def resume(gateway: Gateway, principal: Principal, call: Call, spent: Spent, last: Event | None) -> Reply:
    """The rest of a stream that another process began and `spent` has the tokens of, after `last`, its last chunk."""
    trip = Trip(gateway, principal, call, _body_for_pods(call, principal), spent)
    return _stream(gateway, trip, None, last)


def _stream(gateway: Gateway, trip: Trip, leg: Leg | None, last: Event | None = None) -> Reply:
    gateway.metrics.streams.inc()
    return Reply(events=relay(trip, gateway.hold, leg, last), on_close=[gateway.metrics.streams.dec, trip.close])


def _first(gateway: Gateway, trip: Trip) -> Leg | None:
    """Where a stream begins, None where a pod is to be waited for."""
    try:
        return trip.go_on()
    except NoPodReady:
        if not gateway.hold.open:
            raise
        trip.spent.policy = "hold"
        return None


def _end_of(steps: Generator[Event, None, Leg]) -> Leg:
    """What a wait ends with, where nobody is there to be told of its steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Leg = end.value
            return found


def _body_for_pods(call: Call, principal: Principal) -> dict[str, Any]:
    body = {**call.body, "cache_salt": principal.cache_salt}
    body.pop("resume_token_ids", None)  # ours alone: a client could have tokens counted that no pod generated
    if call.request.priority is not None:
        body["priority"] = max(call.request.priority, 0)  # to yield to all others is allowed, to overtake them is not
    if call.streamed:
        # The usage chunk is how any engine tells its true count; `observe` drops it where the client did not ask.
        body["stream_options"] = {**(call.body.get("stream_options") or {}), "include_usage": True}
    else:
        body.pop("stream_options", None)
    return body
