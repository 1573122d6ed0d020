"""Step 5, settle: replaces the reservation by the true count and its cost, writes the ledger, keeps the answer, counts
and logs. Runs once a call, however it ended: when its last byte has gone, when it has failed, or when its client has
left. What is not settled because the process died, another one settles by its lease."""

from __future__ import annotations

import time

from services.cache.kept import Kept
from services.cache.ledger import Entry
from services.cache.windows import Used
from services.common.metrics import GatewayMetrics
from services.gateway.admit import Admission
from services.gateway.call import Call, Spent
from services.gateway.ledger.pods import final
from services.gateway.outcome import outcome_of
from services.gateway.parts import Gateway
from services.gateway.recall import seal, whole_answer
from services.gateway.recall.known import Asked

BROKEN_OFF = frozenset({"client_gone", "timeout", "upstream_error"})
"""Outcomes of calls whose pod was not heard to its end, and is asked how it ended."""


def settle(
    gateway: Gateway, call: Call, admission: Admission, spent: Spent, error: BaseException | None = None
) -> None:
    """Closes the books of a call that ended well or with `error`; does nothing the second time."""
    if admission.settled:
        return
    admission.settled = True
    # A stream says itself how it ended, unless its client was gone before it began.
    outcome = spent.outcome or ("client_gone" if call.streamed and error is None else outcome_of(error))
    try:
        if outcome in BROKEN_OFF and spent.usage is None and spent.upstream is not None:
            spent.usage = final(gateway.fleet.upstreams, spent.upstream, spent.model or call.model, call.id)
        seal(gateway, call, admission, spent, outcome, error=error)
    finally:  # also where this greenlet is killed meanwhile
        _close_books(gateway, call, admission, spent, outcome)


def _close_books(gateway: Gateway, call: Call, admission: Admission, spent: Spent, outcome: str) -> None:
    entry = _entry(gateway, call, admission, spent, outcome)
    if entry.prompt_tokens:
        gateway.estimates.learn(entry.model, admission.size, entry.prompt_tokens)
    answer = None
    if outcome == "ok" and admission.answer_key is not None:
        body = whole_answer(call, spent)
        if body is not None:
            tokens = spent.tokens
            kept = Kept(body, tokens.prompt_tokens, tokens.cached_tokens or 0, tokens.completion_tokens)
            answer = gateway.responses.keeping(admission.answer_key, kept)
    if call.body_digest is not None and admission.digest is not None and (answer or admission.cached):
        gateway.known.note(call.body_digest, Asked(admission.digest, call.model))
    charged = spent.charged
    used = Used(charged.total_tokens, entry.cost_micros, entry.duration_ms)
    settled = admission.reservation.settled
    try:
        settled = settled or gateway.quotas.settle(admission.reservation, used, entry=entry.fields(), answer=answer)
    finally:
        if not settled:
            gateway.ledger.spool(entry)
    _count(gateway.metrics, gateway.fleet.label(entry.model), call, entry, spent)
    if gateway.spans is not None:
        gateway.spans.record(call, entry)
    call.log_fields.update(
        outcome=outcome,
        prompt_tokens=entry.prompt_tokens,
        completion_tokens=entry.completion_tokens,
        upstream=spent.upstream,
        route=entry.route,
        retries=spent.retries,
        resumes=spent.resumes,
    )


def _entry(gateway: Gateway, call: Call, admission: Admission, spent: Spent, outcome: str) -> Entry:
    """What the ledger keeps of the call."""
    principal, model = admission.principal, spent.model or call.model
    charged = spent.charged
    first = spent.first_token_at
    return Entry(
        id=call.id,
        request_id=call.request_id,
        tenant=principal.tenant,
        tenant_id=principal.tenant_id,
        subject=principal.subject,
        model=model,
        kind=call.kind,
        outcome=outcome,
        prompt_tokens=charged.prompt_tokens,
        cached_tokens=charged.cached_tokens or 0,
        completion_tokens=charged.completion_tokens,
        started_ms=admission.reservation.ask.started_ms,
        duration_ms=int((time.monotonic() - call.started) * 1000),
        ttft_ms=None if first is None else int((first - call.started) * 1000),
        compute_seconds=charged.compute_seconds,
        energy_joules=charged.energy_joules,
        upstream=spent.upstream or "",
        cost_micros=gateway.prices.cost(model, charged),
        saved_micros=gateway.prices.cost(model, spent.saved),
        cache=admission.cache if spent.cache == "bypass" else spent.cache,
        retries=spent.retries,
        resumes=spent.resumes,
        route=spent.route,
    )


def _count(metrics: GatewayMetrics, model: str, call: Call, entry: Entry, spent: Spent) -> None:
    tenant = entry.tenant
    metrics.requests.labels(model, tenant, entry.outcome).inc()
    metrics.cache.labels(model, entry.cache).inc()
    metrics.duration.labels(model).observe(entry.duration_ms / 1000)
    if spent.first_token_at is not None:
        metrics.ttft.labels(model).observe(spent.first_token_at - call.started)
    if entry.prompt_tokens or entry.completion_tokens:
        metrics.tokens.labels(model, tenant, "input").inc(entry.prompt_tokens)
        metrics.tokens.labels(model, tenant, "output").inc(entry.completion_tokens)
    if entry.cost_micros:
        metrics.cost.labels(model, tenant).inc(entry.cost_micros / 1e6)
    if entry.saved_micros:
        metrics.cost_saved.labels(model, tenant).inc(entry.saved_micros / 1e6)
