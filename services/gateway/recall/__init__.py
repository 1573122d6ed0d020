"""Step 3, recall: is the answer there already, or about to be?

What can be there, in the order in which it is looked for:

- a stream of which the client has a part (`rejoin.reconnect`, by `Last-Event-ID`);
- the answer to the same request sent before (`idempotency`, by `Idempotency-Key`);
- the exact answer to the same deterministic request, kept (`exact`), which `admit` has fetched;
- the same answer, which another call is getting just now (`follow`, `flights`);
- where it is turned on, the answer to a question of nearly the same meaning (`semantic`).

`record` is what is kept for the first two, `playback` reads what a tape holds. A request that uses none of these makes
no exchange with Redis here. `known` stands before all steps: what was asked before in the same bytes it gives without
them, where the answer is kept.
"""

from __future__ import annotations

from services.gateway.admit import Admission
from services.gateway.call import Call, Reply, Spent
from services.gateway.identify import Principal
from services.gateway.parts import Gateway
from services.gateway.recall.exact import replay, whole_answer
from services.gateway.recall.follow import follow
from services.gateway.recall.idempotency import repeat
from services.gateway.recall.rejoin import reconnect, record

__all__ = ["recall", "seal", "whole_answer"]


def recall(gateway: Gateway, principal: Principal, call: Call, admission: Admission, spent: Spent) -> Reply | None:
    """The reply, where the answer is there or coming; None where a pod is to make it.

    Raises:
        ApiError: a header that asks for an answer of before has a wrong value, or names one that is not there; or the
            call whose answer this one waited for failed.
    """
    spent.cache = admission.cache
    if admission.flight_key is not None and admission.cached is None and admission.leader is None:
        gateway.flights.lead(call, spent, gateway.responses.salt(principal.cache_salt, share=principal.share_cache))
    reply = None
    if call.last_event_id is not None:
        reply = reconnect(gateway, principal, call, spent)
    elif call.idempotency_key is not None:
        reply = repeat(gateway, principal, call, spent)
    elif call.resumable:
        record(gateway, principal, call, spent)
    if reply is None and admission.cached is not None:
        reply = replay(call, spent, admission.cached)
        spent.recalled = "hit"
    elif reply is None and admission.leader is not None:
        reply = follow(gateway, principal, call, admission, spent)
    elif reply is None and gateway.semantic is not None and admission.flight_key is not None:
        if gateway.moderator is not None:
            gateway.moderator.ask(call)  # what was asked about was another question
            spent.moderated = True
        reply = gateway.semantic.recall(principal, call, spent)
    if reply is not None and spent.recalled is not None:
        spent.cache = spent.recalled
        reply.headers["X-Forebay-Cache"] = spent.recalled
    return reply


def seal(
    gateway: Gateway, call: Call, admission: Admission, spent: Spent, outcome: str, *, error: BaseException | None
) -> None:
    """The call has ended: so do the tapes that it writes. Counts what it was spared."""
    gateway.flights.end(call, outcome, error)
    if spent.recording is not None:
        spent.recording.end(outcome, error)
    if spent.meaning is not None and gateway.semantic is not None and outcome == "ok" and admission.answer_key:
        gateway.semantic.keep(spent.meaning, admission.answer_key)
    if spent.recalled is not None or spent.given:
        saved = spent.saved
        labels = gateway.fleet.label(spent.model or call.model), admission.principal.tenant, spent.recalled or "resumed"
        gateway.metrics.saved_tokens.labels(*labels).inc(saved.total_tokens)
