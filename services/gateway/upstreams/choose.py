"""Which pod gets a request: pure functions over a snapshot of the pods."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from services.gateway.upstreams.exchange import Pool


@dataclass(eq=False)
class Upstream:
    """A pod, as last seen: its models by name with what it says of each, whether it takes requests, and how many of
    this gateway's requests are in it."""

    url: str
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    ready: bool = False
    inflight: int = 0

    def __post_init__(self) -> None:
        self.pool = Pool(self.url)

    def resumes(self, model: str) -> bool:
        """Whether its engine can go on with an answer that another pod began (`resume_token_ids`), as ours does."""
        return self.models.get(model, {}).get("owned_by") == "forebay"


def choose(
    upstreams: Iterable[Upstream],
    model: str,
    *,
    tried: Collection[Upstream] = (),
    resuming: bool = False,
    rng: random.Random | None = None,
) -> Upstream | None:
    """The ready pod that serves `model`, was not tried yet, and has the fewest requests in flight; ties are broken at
    random, so that several gateways do not all take the same one. `resuming`: it must be able to resume an answer."""
    able = [pod for pod in upstreams if pod.ready and model in pod.models and pod not in tried]
    if resuming:
        able = [pod for pod in able if pod.resumes(model)]
    if not able:
        return None
    least = min(pod.inflight for pod in able)
    return (rng or random).choice([pod for pod in able if pod.inflight == least])
