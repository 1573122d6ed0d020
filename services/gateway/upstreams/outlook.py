"""What a request may hope for that finds no pod, or a full one: pure functions over a snapshot of the pods."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from services.gateway.upstreams.upstream import Upstream

UNMEASURED_LOAD = 30.0
"""Seconds that a load is taken to need before one was seen."""
OVERDUE = 0.25
"""A load that takes longer than usual is taken to need this part more of the time that it has taken."""
UNKNOWN_FOR = 120.0
"""Seconds for which a pod that never answered may turn out to serve anything."""


class LoadTimes:
    """How long pods took to become ready, by model: the median of the latest."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, bool], deque[float]] = {}

    def record(self, model: str, seconds: float, *, from_nothing: bool = False) -> None:
        """Notes a load; `from_nothing` includes the time until there was a pod at all, which a request had to wait."""
        self._seconds.setdefault((model, from_nothing), deque(maxlen=8)).append(seconds)

    def typical(self, model: str, *, from_nothing: bool = False) -> float:
        """Seconds that a load takes."""
        seconds = self._seconds.get((model, from_nothing)) or (from_nothing and self._seconds.get((model, False)))
        return sorted(seconds)[len(seconds) // 2] if seconds else UNMEASURED_LOAD


def takes(pod: Upstream, model: str, now: float) -> bool:
    """Whether a request for the model may go there now."""
    return pod.ready and model in pod.models and (pod.breaker.blocked_until <= now or pod.breaker.slow)


def coming(pods: Iterable[Upstream], model: str, now: float) -> list[Upstream]:
    """The pods that are not ready and will serve the model, or may: nobody knows yet what a new one serves."""
    return [
        pod
        for pod in pods
        if not pod.ready
        and (
            model in pod.models
            or model in pod.expected
            or (not pod.models and not pod.expected and now - pod.seen_at < UNKNOWN_FOR)
        )
    ]


def phase(pods: Iterable[Upstream], model: str, now: float) -> str | None:
    """Why no pod takes a request for the model, None when one does."""
    pods = list(pods)
    if any(takes(pod, model, now) for pod in pods):
        return None
    if any(pod.ready and model in pod.models for pod in pods):
        return "circuit open"
    waiting = coming(pods, model, now)
    if not waiting:
        return "no pod"
    named = next((pod.phase for pod in waiting if pod.phase), None)
    return "not ready" if named is None else "loading" if named == "loading" else f"loading: {named}"


def ready_in(pods: Iterable[Upstream], model: str, times: LoadTimes, now: float, *, look: float) -> float:
    """Seconds until a pod takes a request for the model, 0 when one does: what is left of a load's usual time, of a
    breaker's pause, or else the time of a start from nothing. A pod that has loaded is found by the next look, `look`
    seconds later at most, so that whoever comes again when it was told to is not early."""
    pods = list(pods)
    if any(takes(pod, model, now) for pod in pods):
        return 0.0
    waits = [pod.breaker.blocked_until - now for pod in pods if pod.ready and model in pod.models]
    waits = [1.0 if math.isinf(wait) else wait for wait in waits]  # a probe is under way
    for pod in coming(pods, model, now):
        spent = now - (pod.down_since if pod.down_since is not None else now)
        left = times.typical(model) - spent
        waits.append(look + (left if left > 0 else OVERDUE * spent))
    return max(1.0, min(waits)) if waits else times.typical(model, from_nothing=True)


def queue_wait(pods: Iterable[Upstream], model: str, now: float) -> float:
    """Seconds that a new request for the model waits in the shortest of its pods' queues; 0 where one has none."""
    return min((pod.queue_wait(now) for pod in pods if takes(pod, model, now)), default=0.0)
