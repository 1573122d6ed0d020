"""Step 2, admit: may this caller do this now?

Reserves the caller's quota, and fetches a cached answer in the same round trip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.cache.responses import answer_key
from services.cache.windows import Limits, Reservation
from services.common.errors import RateLimited
from services.common.wire import ChatRequest, CompletionRequest
from services.gateway.call import Call
from services.gateway.identify import Principal, require
from services.gateway.parts import Gateway

CHARACTERS_PER_TOKEN = 4
"""For the reservation only, which is replaced by the engine's count; English text has about four."""


@dataclass(frozen=True)
class Admission:
    """What the caller was granted."""

    principal: Principal
    limits: Limits
    reservation: Reservation
    answer_key: str | None
    """Where the answer lies or shall be kept; None when this call is not cached."""
    cached: bytes | None

    def headers(self, call: Call) -> dict[str, str]:
        """Rate-limit headers by OpenAI's names, and what the cache did."""
        cache = "hit" if self.cached is not None else "miss" if self.answer_key else "bypass"
        call.log_fields["cache"] = cache
        return {"X-Forebay-Cache": cache, **limit_headers(self.limits, self.reservation)}


def admit(gateway: Gateway, principal: Principal, call: Call) -> Admission:
    """Reserves one request and the tokens that it may use at most.

    Raises:
        Forbidden: the caller may not use the models.
        RateLimited: a limit is used up; `Retry-After` is when its window ends.
    """
    require(principal, "inference")
    call.log_fields.update({"tenant": principal.tenant, "model": call.model, "stream": call.streamed})
    limits = getattr(principal, "limits", None) or Limits(principal.requests_per_minute, principal.tokens_per_minute)
    # One text: a stream's pieces are kept as nothing more.
    plain = call.request.choices == 1 and call.request.logprob_count is None
    cacheable = gateway.responses.enabled and call.use_cache and call.request.deterministic and plain
    key = answer_key(principal.cache_salt, call.kind, call.body) if cacheable else None
    reservation, cached = gateway.quotas.reserve(principal.subject, limits, most_tokens(call), key)
    if reservation.refused is not None:
        gateway.metrics.requests.labels(gateway.fleet.label(call.model), principal.tenant, "rate_limited").inc()
        gateway.metrics.refused.labels(principal.tenant, reservation.refused).inc()
        limit = getattr(limits, f"{reservation.refused}_per_minute")
        raise RateLimited(
            f"Rate limit reached: {limit} {reservation.refused} per minute. "
            f"Try again in {math.ceil(reservation.reset)} s.",
            retry_after=reservation.reset,
            headers=limit_headers(limits, reservation),
        )
    return Admission(principal, limits, reservation, key, cached)


def most_tokens(call: Call) -> int:
    """What the call may use at most: an estimate of its prompt, and all that it may generate."""
    request = call.request
    if isinstance(request, ChatRequest):
        prompt = sum(len(message.text()) // CHARACTERS_PER_TOKEN + 4 for message in request.messages)
    elif isinstance(request, CompletionRequest):
        prompt = sum(
            len(part) // CHARACTERS_PER_TOKEN + 1 if isinstance(part, str) else len(part) for part in request.prompts
        )
    else:
        prompt = 0
    return prompt + (request.token_limit or 0) * request.choices


def limit_headers(limits: Limits, reservation: Reservation) -> dict[str, str]:
    reset = f"{reservation.reset:.3f}s"
    return {
        "x-ratelimit-limit-requests": str(limits.requests_per_minute),
        "x-ratelimit-limit-tokens": str(limits.tokens_per_minute),
        "x-ratelimit-remaining-requests": str(reservation.requests_left),
        "x-ratelimit-remaining-tokens": str(reservation.tokens_left),
        "x-ratelimit-reset-requests": reset,
        "x-ratelimit-reset-tokens": reset,
    }
