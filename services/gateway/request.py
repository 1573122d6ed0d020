"""The way of a request through the gateway: five steps, in this order.

Each step takes what the one before it gave and hands on a value. A step that refuses raises an `ApiError`.
"""

from __future__ import annotations

from functools import partial

from services.common.errors import ApiError
from services.common.telemetry import ROUTE_HEADER
from services.gateway.admit import admit
from services.gateway.call import Call, Reply, Spent
from services.gateway.dispatch import dispatch
from services.gateway.parts import Gateway
from services.gateway.recall import recall
from services.gateway.settle import settle


def answer(gateway: Gateway, call: Call) -> Reply:
    """Answers a generation request, or raises the `ApiError` that says why not."""
    principal = gateway.identifier.identify(call.authorization)
    admission = admit(gateway, principal, call)
    spent = Spent(asked_model=call.asked_model, model=call.model, cache=admission.cache)
    try:
        reply = recall(gateway, principal, call, admission, spent) or dispatch(gateway, principal, call, spent)
    except BaseException as error:
        settle(gateway, call, admission, spent, error)
        if isinstance(error, ApiError):
            error.add_header(ROUTE_HEADER, spent.route)
        raise
    if spent.recording is not None:
        spent.recording.attach(reply)
    reply.headers = {**admission.headers(call), ROUTE_HEADER: spent.route, **reply.headers}
    reply.on_close.insert(0, partial(settle, gateway, call, admission, spent))  # runs last, after the stream is closed
    return reply
