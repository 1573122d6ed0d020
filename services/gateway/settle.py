"""Step 5, settle: replaces the reservation by the true count, keeps the answer, counts and logs. Runs exactly once a
call, when its last byte has gone or it has failed."""

from __future__ import annotations

import time

from services.common.errors import BUSY, ApiError, ClientGone, DeadlineExceeded, RelayedError
from services.gateway.admit import Admission
from services.gateway.call import Call, Spent
from services.gateway.parts import Gateway
from services.gateway.recall import whole_answer


def settle(
    gateway: Gateway, call: Call, admission: Admission, spent: Spent, error: BaseException | None = None
) -> None:
    """Closes the books of a call that ended well or with `error`."""
    outcome = spent.outcome or _outcome_of(error)
    hit = admission.cached is not None
    tokens = spent.tokens
    gateway.quotas.settle(admission.principal.subject, admission.reservation, 0 if hit else tokens.total_tokens)

    if outcome == "ok" and admission.answer_key is not None:
        body = whole_answer(call, spent)
        if body is not None:
            gateway.responses.keep(admission.answer_key, body)

    seconds = time.monotonic() - call.started
    model = gateway.fleet.label(call.model)
    tenant = admission.principal.tenant
    metrics = gateway.metrics
    metrics.requests.labels(model, tenant, outcome).inc()
    metrics.cache.labels(model, "hit" if hit else "miss" if admission.answer_key else "bypass").inc()
    metrics.duration.labels(model).observe(seconds)
    if spent.first_token_at is not None:
        metrics.ttft.labels(model).observe(spent.first_token_at - call.started)
    if tokens.total_tokens:
        metrics.tokens.labels(model, tenant, "input").inc(tokens.prompt_tokens)
        metrics.tokens.labels(model, tenant, "output").inc(tokens.completion_tokens)
    call.log_fields.update(
        outcome=outcome,
        prompt_tokens=tokens.prompt_tokens,
        completion_tokens=tokens.completion_tokens,
        upstream=spent.upstream,
        retries=spent.retries,
        resumes=spent.resumes,
    )


def _outcome_of(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, ClientGone):
        return "client_gone"
    if isinstance(error, DeadlineExceeded):
        return "timeout"
    if isinstance(error, RelayedError) and error.status in BUSY:
        return "overloaded"
    if isinstance(error, ApiError):
        return "client_error" if error.status < 500 else "upstream_error"
    return "error"
