"""Which pods there are, which of them gets a request, and what happens when none can."""

from __future__ import annotations

from pydantic import Field, field_validator

from services.common.settings.common import CommonSettings
from services.common.settings.environment import CommaSeparated


class RoutingSettings(CommonSettings):
    """Pods, the choice among them, and the names of models."""

    upstreams: CommaSeparated = Field(
        ["http://127.0.0.1:8000"],
        description="Base URLs of the inference pods, comma-separated. `dns+http://HOST:PORT` is a pod at each address "
        "of the name, which is looked up again and again: a headless Service of Kubernetes. `k8s+http://NAMESPACE` is "
        "each pod of the EndpointSlices there that have the label `forebay.dev/model`, which are watched; no namespace "
        "is the gateway's own, `:PORT` is for pods whose port is not named `http`, `?labelSelector=` selects others.",
    )
    upstream_poll_interval: float = Field(1.0, gt=0, description="Seconds between looks at each pod's models and load.")
    expected_models: CommaSeparated = Field(
        [],
        description="Names of models, comma-separated, that exist although no pod has served them yet: a request for "
        "one waits for its first pod instead of being answered 404.",
    )
    aliases: dict[str, dict[str, float]] = Field(
        {},
        description="Names that stand for several models, by weight, as JSON: "
        '`{"prod": {"a": 90, "b": 10}}`. A conversation stays with the model that it got.',
    )
    fallbacks: dict[str, list[str]] = Field(
        {},
        description="Models that answer where no pod of a model can, in this order, as JSON: "
        '`{"a": ["b"]}`. The answer names the model that gave it.',
    )
    load_bound: float = Field(
        1.25,
        ge=1,
        description="How many times the average load a pod may have that a conversation returns to, as the KV cache "
        "has its beginning there; above it another pod takes the request. 1 spreads most evenly.",
    )
    retry_budget: float = Field(
        0.2, ge=0, description="Requests sent to a second pod, as a part of all requests, beside ten a second."
    )
    breaker_failures: int = Field(
        5, ge=1, description="Failures in a row after which a pod gets no requests for a while."
    )
    breaker_pause: float = Field(
        2.0, gt=0, description="Seconds until such a pod is tried again; doubled at each failure, up to a minute."
    )
    hold_timeout: float = Field(
        30.0,
        ge=0,
        description="Seconds that a request waits for a pod while none is ready for its model; 0: not at all.",
    )
    hold_max: int = Field(200, ge=0, description="Requests that one worker lets wait for a pod at the same time.")

    @field_validator("upstreams")
    @classmethod
    def _without_slash(cls, value: list[str]) -> list[str]:
        return [url.rstrip("/") for url in value]

    @field_validator("aliases")
    @classmethod
    def _check_aliases(cls, value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for alias, weights in value.items():
            if not weights or not all(0 < weight < float("inf") for weight in weights.values()):
                raise ValueError(f"the alias '{alias}' needs models, each with a weight above zero")
            if nested := weights.keys() & value.keys():
                raise ValueError(f"the alias '{alias}' stands for '{min(nested)}', which is an alias itself")
        return value
