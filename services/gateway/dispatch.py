"""Step 4, dispatch: picks a pod, sends the call there, relays what comes back, tries another pod where none took it."""

from __future__ import annotations

from typing import Any

from services.gateway.call import Call, Reply, Spent
from services.gateway.identify import Principal
from services.gateway.observe import usage_of
from services.gateway.parts import Gateway
from services.gateway.relay import relay
from services.gateway.trip import Trip


def dispatch(gateway: Gateway, principal: Principal, call: Call, spent: Spent) -> Reply:
    """The reply of the pod that took the call; of the last one, where pods are lost meanwhile.

    Raises:
        ApiError: there is none, as `Trip.go_on` says. A stream that has begun ends with an error event instead.
    """
    trip = Trip(gateway, call, _body_for_pods(call, principal), spent)
    leg = trip.go_on()
    if call.streamed:
        gateway.metrics.streams.inc()
        return Reply(events=relay(trip, leg), on_close=[gateway.metrics.streams.dec, trip.close])
    trip.close()
    spent.answer = leg.answer
    spent.usage = usage_of(leg.answer)
    return Reply(body=leg.answer)


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
