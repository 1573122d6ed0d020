"""Step 2, admit: may this caller do this now?

Reserves all that the call may use, of the key's limits and of the tenant's, and in the same round trip fetches a cached
answer, or takes the lead among identical calls. What is limited, and how, is told in docs/limits.md.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache

from services.cache.responses import digest_of, flight_key, salted
from services.cache.windows import Ask, LimitName, Refused, Reservation, Standing
from services.common.errors import ModelNotFound, QuotaExceeded, RateLimited
from services.gateway.call import Call, Spent
from services.gateway.estimate import Size, size_of
from services.gateway.identify import Principal, require
from services.gateway.parts import Gateway

UNITS: dict[LimitName, str] = {
    "requests_per_minute": "requests per minute",
    "tokens_per_minute": "tokens per minute",
    "concurrent": "concurrent requests",
    "tokens_per_day": "tokens per day",
    "tokens_per_month": "tokens per month",
    "micros_per_day": "millionths of the currency per day",
    "micros_per_month": "millionths of the currency per month",
}


@dataclass(slots=True)
class Admission:
    """What the caller was granted."""

    principal: Principal
    reservation: Reservation
    answer_key: str | None
    """Where the answer shall be kept; None when it may not be."""
    digest: bytes | None
    """Of what was asked, by which that key was made."""
    size: Size
    """Of the prompt, by which its tokens were estimated."""
    settled: bool = False

    @property
    def cached(self) -> bytes | None:
        """The answer, where it was kept."""
        return self.reservation.cached

    @property
    def flight_key(self) -> str | None:
        """By which identical calls in flight know this one; None where it is computed for itself."""
        return self.reservation.ask.flight_key

    @property
    def leader(self) -> str | None:
        """The flight of the identical call that is computed already; None where this one leads or is alone."""
        return self.reservation.leader

    @property
    def cache(self) -> str:
        """What the look-up in the response cache found."""
        if self.reservation.ask.answer_key is None:
            return "bypass"
        return "miss" if self.cached is None else "hit"

    def headers(self, call: Call) -> dict[str, str]:
        """Rate-limit headers by OpenAI's names, and what the cache did."""
        call.log_fields["cache"] = self.cache
        return {"X-Forebay-Cache": self.cache, **limit_headers(self.reservation)}


def admit(gateway: Gateway, principal: Principal, call: Call) -> Admission:
    """Reserves one request, and the tokens and the money that it may cost at most.

    Raises:
        Forbidden: the caller may not use models.
        ModelNotFound: not this one, which the caller can't tell from one that does not exist.
        RateLimited: a limit of the minute, or of calls at the same time, is used up.
        QuotaExceeded: what is left of a day's or a month's budget is less than the call may cost.
    """
    require(principal, "inference")
    call.log_fields.update({"tenant": principal.tenant, "model": call.model, "stream": call.streamed})
    if not may_use(principal, call.model, call.asked_model):
        gateway.metrics.requests.labels(gateway.fleet.label(call.model), principal.tenant, "client_error").inc()
        raise ModelNotFound(call.asked_model or call.model)
    digest = _digest(gateway, call)
    keep = None if digest is None else salted(_salt(gateway, principal), digest)
    look_up = keep if call.use_cache else None
    size = size_of(call.request)
    prompt = gateway.estimates.prompt_tokens(call.model, size)
    completion = (call.request.token_limit or 0) * call.request.choices
    reservation = gateway.quotas.reserve(
        Ask(
            subject=principal.subject,
            limits=principal.limits,
            tokens=prompt + completion,
            micros=gateway.prices.most(call.model, prompt, completion),
            id=call.id,
            tenant=principal.tenant,
            tenant_id=principal.tenant_id,
            tenant_limits=principal.tenant_limits,
            request_id=call.request_id,
            model=call.model,
            kind=call.kind,
            started_ms=int((time.time() - time.monotonic() + call.started) * 1000),
            timeout_ms=int(call.timeout * 1000),
            answer_key=look_up,
            flight_key=flight_key(look_up) if look_up else None,
            flight=f"{call.id} {gateway.quotas.process}",
            # What has a tape may yet end otherwise than by the answer that is kept.
            hit_route=hit_route(call.model, call.asked_model) if look_up and not call.taped else None,
            prices=gateway.prices.of(call.model),
        )
    )
    note_budgets(gateway, principal, reservation)
    if reservation.refused is not None:
        gateway.metrics.requests.labels(gateway.fleet.label(call.model), principal.tenant, "rate_limited").inc()
        gateway.metrics.refused.labels(principal.tenant, reservation.refused.account, reservation.refused.limit).inc()
        raise _refusal(reservation, reservation.refused)
    return Admission(principal, reservation, keep, digest, size)


def note_budgets(gateway: Gateway, principal: Principal, reservation: Reservation) -> None:
    """Shows how much of its budgets the tenant has used, and restores those of which Redis does not know the past."""
    if reservation.unknown_past:
        gateway.budgets.note(principal, reservation)
    if reservation.budget_used is not None:
        for period, used in zip(("day", "month"), reservation.budget_used, strict=True):
            gateway.metrics.budget_used.labels(principal.tenant, period).set(used)


@lru_cache(maxsize=1000)
def hit_route(model: str, asked_model: str) -> str:
    """How `X-Forebay-Route` says that the answer was kept."""
    return Spent(asked_model=asked_model, model=model, cache="hit").route


def may_use(principal: Principal, *names: str) -> bool:
    """Whether the caller's models are not restricted, or have one of these names: a model's own, or an alias of it."""
    return principal.models is None or not principal.models.isdisjoint(names)


def limit_headers(reservation: Reservation) -> dict[str, str]:
    """How the tighter of key and tenant stands, by OpenAI's names; nothing of what is not limited."""
    headers: dict[str, str] = {}
    _add(headers, "requests", reservation.requests)
    _add(headers, "tokens", reservation.tokens)
    return headers


def _digest(gateway: Gateway, call: Call) -> bytes | None:
    """By what the call's answer is known again; None where it may not be kept."""
    request = call.request
    # One text: a stream's pieces are kept as nothing more.
    plain = request.choices == 1 and request.logprob_count is None
    if not (call.keep and request.deterministic and plain and gateway.responses.enabled):
        return None
    return digest_of(call.kind, call.body)


def _salt(gateway: Gateway, principal: Principal) -> str:
    return gateway.responses.salt(principal.cache_salt, share=principal.share_cache)


def _add(headers: dict[str, str], what: str, standing: Standing | None) -> None:
    if standing is not None:
        headers[f"x-ratelimit-limit-{what}"] = str(standing.limit)
        headers[f"x-ratelimit-remaining-{what}"] = str(standing.left)
        headers[f"x-ratelimit-reset-{what}"] = f"{standing.reset:.3f}s"


def _refusal(reservation: Reservation, refused: Refused) -> RateLimited | QuotaExceeded:
    ask = reservation.ask
    limits = ask.limits if refused.account == "key" else ask.tenant_limits
    reached = f"of the {refused.account}: {getattr(limits, refused.limit)} {UNITS[refused.limit]}."
    headers = limit_headers(reservation)
    budget = refused.limit.endswith(("_day", "_month"))
    if budget or refused.wait is None:
        # OpenAI's own client sends a 429 again by itself, unless it is told not to.
        headers["x-should-retry"] = "false"
    if refused.wait is None:
        may_cost = f"{ask.micros} of them" if refused.limit.startswith("micros") else f"{ask.tokens} tokens"
        advice = f"This request may take {may_cost}, more than that: a smaller max_tokens may help."
    else:
        about = "about " if refused.limit == "concurrent" else ""
        advice = f"Try again in {about}{max(1, math.ceil(refused.wait))} s."
        if budget:
            advice += " What is left of it is less than this request may cost; a smaller max_tokens may fit."
    kind, what = (QuotaExceeded, "Budget") if budget else (RateLimited, "Rate limit")
    return kind(f"{what} reached {reached} {advice}", retry_after=refused.wait, headers=headers)
