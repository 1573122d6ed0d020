"""Which pod gets a request: pure functions over a snapshot of the pods."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from services.gateway.upstreams.affinity import Affinity, home
from services.gateway.upstreams.upstream import Upstream

__all__ = ["LOAD_BOUND", "Choice", "Policy", "Upstream", "choose", "laggards"]

LOAD_BOUND = 1.25
"""How many times the average load the pod may have that a conversation returns to."""
SLOW_FACTOR = 4.0
SLOW_LEAST = 1.0
SLOW_SAMPLES = 3
"""A pod is slow when its time to the first byte is so many times its peers', and so many seconds more, in the median of
at least so many requests."""

Policy = Literal["session", "prefix", "spilled", "least-loaded", "only"]
"""What chose a pod: the client's session; the conversation's beginning; either of them, but its own pod has too much to
do and it is the next one; the lower load of two; there was no other."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A pod and what chose it."""

    pod: Upstream
    policy: Policy


def choose(
    upstreams: Iterable[Upstream],
    model: str,
    *,
    tried: Collection[Upstream] = (),
    resuming: bool = False,
    affinity: Affinity | None = None,
    bound: float = LOAD_BOUND,
    now: float | None = None,
    rng: random.Random | None = None,
) -> Choice | None:
    """A ready pod that serves `model`, was not tried yet, and whose circuit lets a request through; a slow one where
    there is no other; None where there is none.

    With an affinity it is the pod that the conversation belongs to, unless that has `bound` times the average load.
    Else it is the less loaded one of two at random, which keeps loads even though each gateway knows only its part and
    what pods said some time ago: who takes the least loaded of all, all gateways at once, floods it (Mitzenmacher, "The
    Power of Two Choices in Randomized Load Balancing", 2001).

    Args:
        resuming: it must be able to resume an answer.
        now: the pods' time.
    """
    if now is None:
        now = time.monotonic()
    able = [
        pod
        for pod in upstreams
        if pod.ready and model in pod.models and pod not in tried and not (resuming and not pod.resumes(model))
    ]
    free = [pod for pod in able if pod.breaker.blocked_until <= now] or [pod for pod in able if pod.breaker.slow]
    if len(free) < 2:
        return Choice(free[0], "only") if free else None
    if affinity is not None:
        loads = [pod.load(now) for pod in free]
        place, first = home(affinity.key, [pod.seed for pod in free], loads, bound)
        return Choice(free[place], affinity.policy if first else "spilled")
    draw = (rng or random).random
    one = int(draw() * len(free))
    other = int(draw() * (len(free) - 1))
    other += other >= one
    lower = free[other] if free[other].load(now) < free[one].load(now) else free[one]
    return Choice(lower, "least-loaded")


def laggards(upstreams: Iterable[Upstream], now: float, *, window: float = 60.0) -> list[Upstream]:
    """The pods that are slow: far beyond their peers, of late, in the time to the first byte of the same kind of
    request. One that still waits for it counts with the time so far, so a pod that hangs is found too."""
    pods = [pod for pod in upstreams if pod.ready]
    found: dict[Upstream, None] = {}
    for kind in {kind for pod in pods for kind in pod.times} | {one.kind for pod in pods for one in pod.unanswered}:
        answered = {pod: [took for at, took in pod.times.get(kind, ()) if now - at < window] for pod in pods}
        medians = {pod: _median(times) for pod, times in answered.items() if len(times) >= SLOW_SAMPLES}
        for pod in pods:
            peers = [median for peer, median in medians.items() if peer is not pod]
            if not peers:
                continue
            limit = max(SLOW_FACTOR * _median(peers), _median(peers) + SLOW_LEAST)
            waiting = [now - one.began for one in pod.unanswered if one.kind == kind and now - one.began > limit]
            times = answered[pod] + waiting
            if len(times) >= SLOW_SAMPLES and _median(times) > limit:
                found[pod] = None
    return list(found)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
