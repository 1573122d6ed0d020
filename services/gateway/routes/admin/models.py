"""`/admin/models`: the models as this gateway sees them, for admins of the platform: its pods are every tenant's.

What `GET /v1/models` lists is what a caller may use; here is also what is expected, loads, fails or only stands in the
settings, and why a request for it would wait. Each worker process has looked at the pods by itself, and tells how many
requests it has in them itself; what pods say of their load is true of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from flask import Blueprint, Response, jsonify
from pydantic import Field

from services.common.errors import NotFound
from services.common.wire import Usage
from services.gateway.parts import Gateway
from services.gateway.route import replica
from services.gateway.routes.admin.desk import Shown, platform_only
from services.gateway.upstreams.upstream import Upstream

MILLION = 1_000_000


class PodShown(Shown):
    """A pod that serves the model, or will."""

    replica: str = Field(description="Its address, as in `X-Forebay-Route`.")
    ready: bool = Field(description="Whether it answers, and takes requests.")
    phase: str | None = Field(description="What its loading is at, by its own word.")
    down_seconds: float | None = Field(description="Since when it has not been ready.")
    circuit: Literal["closed", "open", "half-open"]
    slow: bool = Field(description="Whether its circuit is not closed because it is slow.")
    inflight: int = Field(description="Requests of this gateway process in it.")
    waiting: int | None = Field(description="Requests in its queue, as it last said; null where it does not tell.")
    running: int | None = Field(description="Requests in its batch.")
    kv_cache_usage: float | None = Field(description="Part of its KV cache in use, 0 to 1.")


class PriceShown(Shown):
    """What a million tokens cost, in millionths of the currency of `FOREBAY_PRICES`."""

    prompt_micros: int
    cached_prompt_micros: int
    completion_micros: int


class ModelShown(Shown):
    id: str
    object: Literal["model"] = "model"
    ready_pods: int
    phase: str | None = Field(description="Why no pod takes a request for it now; null where one does.")
    ready_in: float = Field(description="Seconds until one does, by the load times that were measured.")
    queue_seconds: float = Field(description="Seconds that a request which comes now would wait in a pod's queue.")
    known: bool = Field(description="Whether calls for it are taken, and held where they must be; else they get 404.")
    pods: list[PodShown]
    aliases: dict[str, float] = Field(description="Names that stand for it, each with its part of their conversations.")
    fallbacks: list[str] = Field(description="Models that answer in its place where no pod of it can, in order.")
    fallback_for: list[str] = Field(description="Models in whose place it answers.")
    price: PriceShown


def register(routes: Blueprint, gateway: Gateway) -> None:
    @routes.get("/models")
    def list_models() -> Response:
        platform_only("see all models and their pods")
        return jsonify(object="list", data=[_shown(gateway, name) for name in _names(gateway)], has_more=False)

    @routes.get("/models/<path:name>")
    def show_model(name: str) -> Response:
        platform_only("see all models and their pods")
        if name not in _names(gateway):
            raise NotFound("Neither a pod nor a setting names this model.")
        return jsonify(_shown(gateway, name))


def _names(gateway: Gateway) -> list[str]:
    """The models that a pod or a setting names: a typing error in an alias must be seen somewhere."""
    settings = gateway.settings
    named = {*gateway.fleet.known_models, *settings.expected_models, *settings.fallbacks}
    for pod in gateway.fleet.upstreams:
        named |= {*pod.models, *pod.expected}
    for models in (*settings.aliases.values(), *settings.fallbacks.values()):
        named |= {*models}
    return sorted(named)


def _shown(gateway: Gateway, name: str) -> dict[str, object]:
    fleet, settings = gateway.fleet, gateway.settings
    pods = [pod for pod in fleet.upstreams if name in pod.models or name in pod.expected]
    return ModelShown(
        id=name,
        ready_pods=sum(pod.ready and name in pod.models for pod in pods),
        phase=fleet.phase(name),
        ready_in=round(fleet.ready_in(name), 1),
        queue_seconds=round(fleet.queue_wait(name), 3),
        known=fleet.expects(name),
        pods=[_pod(pod) for pod in pods],
        aliases={
            alias: round(weights[name] / sum(weights.values()), 4)
            for alias, weights in settings.aliases.items()
            if name in weights
        },
        fallbacks=[*settings.fallbacks.get(name, ())],
        fallback_for=_falling_back(settings.fallbacks, name),
        price=_price(gateway, name),
    ).model_dump()


def _pod(pod: Upstream) -> PodShown:
    now = pod.clock()
    report = pod.report(now)
    return PodShown(
        replica=replica(pod.url) or "",
        ready=pod.ready,
        phase=pod.phase,
        down_seconds=None if pod.down_since is None else round(now - pod.down_since, 1),
        circuit=pod.breaker.state,
        slow=pod.breaker.slow,
        inflight=pod.inflight,
        waiting=report.waiting if report else None,
        running=report.running if report else None,
        kv_cache_usage=report.kv_usage if report else None,
    )


def _falling_back(fallbacks: Mapping[str, list[str]], name: str) -> list[str]:
    return sorted(model for model, others in fallbacks.items() if name in others)


def _price(gateway: Gateway, name: str) -> PriceShown:
    prices = gateway.prices
    return PriceShown(
        prompt_micros=prices.cost(name, Usage(MILLION, 0)),
        cached_prompt_micros=prices.cost(name, Usage(MILLION, 0, MILLION)),
        completion_micros=prices.cost(name, Usage(0, MILLION)),
    )
