"""What the engine's work costs, and how it is counted."""

from __future__ import annotations

import time
from collections.abc import Sequence as Listing
from dataclasses import dataclass

from services.common.metrics import EngineMetrics
from services.inference.engine.energy import EnergyCounter
from services.inference.engine.generation import Generation
from services.inference.engine.schedule import Scheduler, Work


@dataclass(frozen=True, slots=True)
class Load:
    """How full an engine is: requests that wait and that run, the part of the KV cache in use, and the requests that it
    finishes a second while it has work, None before it has finished some."""

    waiting: int
    running: int
    kv_usage: float
    rate: float | None


def share(plan: Listing[Work], seconds: float, joules: float | None) -> None:
    """Charges each request of a step its part of the step's time and energy, by the tokens computed for it.

    A request that had a step of unknown energy is of unknown energy.
    """
    computed = sum(work.count for work in plan)
    for work in plan:
        sequence, part = work.sequence, work.count / computed
        sequence.seconds += seconds * part
        sequence.joules = None if joules is None else (sequence.joules or 0.0) + joules * part


class Meter:
    """The costs and counts of one model, in its engine's thread."""

    def __init__(self, model: str, metrics: EngineMetrics, energy: EnergyCounter | None) -> None:
        self._model = model
        self._energy = energy
        self._began: tuple[float, float | None] = (0.0, None)
        self._requests = metrics.requests
        self._failures = metrics.step_failures
        self._ttft = metrics.ttft.labels(model)
        self._token_time = metrics.token_time.labels(model)
        self._duration = metrics.duration.labels(model)
        self._prompt_tokens = metrics.prompt_tokens.labels(model)
        self._cached_tokens = metrics.cached_tokens.labels(model)
        self._generated_tokens = metrics.generated_tokens.labels(model)
        self._preemptions = metrics.preemptions.labels(model)
        self._waiting = metrics.waiting.labels(model)
        self._running = metrics.running.labels(model)
        self._batch = metrics.batch.labels(model)
        self._kv_usage = metrics.kv_usage.labels(model)
        self._step_time = metrics.step_time.labels(model)
        self._compute_seconds = metrics.compute_seconds.labels(model)
        # Only where it is known: a series that stands at zero would say that nothing was used.
        self._joules = metrics.joules.labels(model) if energy is not None else None

    def load(self, scheduler: Scheduler) -> None:
        """How full the engine is now."""
        self._waiting.set(len(scheduler.waiting))
        self._running.set(len(scheduler.running))
        self._kv_usage.set(scheduler.pool.used / scheduler.pool.count)

    def step_begins(self) -> None:
        """Starts the clock and reads the energy counter."""
        self._began = (time.monotonic(), self._read_energy())

    def step_ends(self, plan: Listing[Work], sampled: int) -> None:
        """Charges the requests of the step that began last, once it is committed."""
        began, joules_before = self._began
        seconds, joules_after = time.monotonic() - began, self._read_energy()
        joules = None if joules_before is None or joules_after is None else joules_after - joules_before
        share(plan, seconds, joules)
        self._compute_seconds.inc(seconds)
        if self._joules is not None and joules is not None:
            self._joules.inc(joules)
        self._batch.observe(len(plan))
        self._step_time.observe(seconds)
        for work in plan:
            end, prompt = work.sequence.computed, work.sequence.prompt_length
            self._prompt_tokens.inc(max(0, min(end, prompt) - (end - work.count)))
        self._generated_tokens.inc(sampled)

    def step_failed(self, cause: str) -> None:
        """A step that gave nothing, and so is charged to nobody."""
        self._failures.labels(self._model, cause).inc()

    def token(self, generation: Generation, now: float) -> None:
        """A token of a request, known since `now`."""
        if generation.last_token is None:
            generation.first_token = now
            self._ttft.observe(now - generation.arrived)
        else:
            self._token_time.observe(now - generation.last_token)
        generation.last_token = now

    def ended(self, generation: Generation, outcome: str) -> None:
        """A request that leaves the engine."""
        sequence = generation.sequence
        self._requests.labels(self._model, outcome).inc()
        self._duration.observe(time.monotonic() - generation.arrived)
        self._cached_tokens.inc(sequence.cached)
        self._preemptions.inc(sequence.preemptions)

    def _read_energy(self) -> float | None:
        joules = self._energy() if self._energy is not None else None
        if joules is None:
            self._energy = None
        return joules


class Pace:
    """Mean seconds between two requests that end while there is work, the later ones weighing more."""

    WEIGHT = 0.1

    def __init__(self) -> None:
        self.seconds = 1.0
        self.rate: float | None = None
        """Requests a second, None before two have ended without a rest between them."""
        self._last: float | None = None

    def rests(self) -> None:
        """There is no work: the time until the next request ends says nothing."""
        self._last = None

    def ended(self) -> None:
        """Another one has."""
        now = time.monotonic()
        if self._last is not None:
            self.seconds += self.WEIGHT * (min(now - self._last, 60.0) - self.seconds)
            self.rate = 1 / max(self.seconds, 1e-3)
        self._last = now
