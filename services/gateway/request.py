"""The way of a request through the gateway: five steps, in this order.

Each step takes what the one before it gave and hands on a value. A step that refuses raises an `ApiError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from services.cache.connection import Connection
from services.cache.quotas import Quotas
from services.cache.responses import Responses
from services.common.metrics import GatewayMetrics
from services.common.settings import GatewaySettings
from services.gateway.admit import admit
from services.gateway.call import Call, Reply, Spent
from services.gateway.dispatch import dispatch
from services.gateway.identify import Identifier
from services.gateway.recall import recall
from services.gateway.settle import settle
from services.gateway.upstreams.discover import Fleet


@dataclass(frozen=True)
class Gateway:
    """The parts that the steps work with, one of each in a worker process."""

    settings: GatewaySettings
    metrics: GatewayMetrics
    identifier: Identifier
    connection: Connection
    quotas: Quotas
    responses: Responses
    fleet: Fleet


def answer(gateway: Gateway, call: Call) -> Reply:
    """Answers a generation request, or raises the `ApiError` that says why not."""
    principal = gateway.identifier.identify(call.authorization)
    admission = admit(gateway, principal, call)
    spent = Spent()
    try:
        reply = recall(call, admission, spent) or dispatch(gateway, principal, call, spent)
    except BaseException as error:
        settle(gateway, call, admission, spent, error)
        raise
    reply.headers |= admission.headers(call)
    reply.on_close.insert(0, partial(settle, gateway, call, admission, spent))  # runs last, after the stream is closed
    return reply
