"""How much a key may use that has no limits of its own, and what that costs."""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field

from services.common.settings.common import CommonSettings


class Price(BaseModel):
    """What a model's tokens cost, for a million of each, in one currency for all models."""

    model_config = ConfigDict(extra="forbid")

    input: Decimal = Field(Decimal(0), ge=0, max_digits=12, decimal_places=6)
    cached_input: Decimal | None = Field(None, ge=0, max_digits=12, decimal_places=6)
    """Of prompt tokens that a pod's prefix cache spared; the same as others where it is not given."""
    output: Decimal = Field(Decimal(0), ge=0, max_digits=12, decimal_places=6)


class LimitSettings(CommonSettings):
    """Limits, budgets and prices."""

    requests_per_minute: int = Field(600, ge=1, description="Limit of a key that has none of its own.")
    tokens_per_minute: int = Field(200_000, ge=1, description="Limit of a key that has none of its own.")
    concurrent_requests: int | None = Field(
        None,
        ge=1,
        description="Requests that a key may have running at the same time, where it has no limit of its own.",
    )
    tokens_per_day: int | None = Field(None, ge=1, description="Budget of a key that has none of its own.")
    tokens_per_month: int | None = Field(None, ge=1, description="Budget of a key that has none of its own.")
    micros_per_day: int | None = Field(
        None, ge=1, description="Budget of a key that has none of its own, in millionths of the currency of `prices`."
    )
    micros_per_month: int | None = Field(None, ge=1, description="The same for a month.")
    prices: dict[str, Price] = Field(
        {},
        description="What models cost, as JSON: a price for a million tokens of each kind, `*` for models that have "
        'none, as in `{"small": {"input": 0.5, "cached_input": 0.05, "output": 1.5}, "*": {"output": 1}}`. Without one '
        "they cost nothing.",
    )
    default_max_tokens: int = Field(
        1024,
        ge=1,
        description="`max_tokens` of a request that names none; of a text completion 16 at most, as at OpenAI.",
    )
