"""Which pods there are, which of them take requests, and what they serve: a look at each, every second."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from services.common.metrics import GatewayMetrics
from services.gateway.upstreams import outlook
from services.gateway.upstreams.affinity import Affinity
from services.gateway.upstreams.breaker import DEFAULT, Breaker, Rules
from services.gateway.upstreams.budget import RetryBudget
from services.gateway.upstreams.choose import LOAD_BOUND, Choice, choose, laggards
from services.gateway.upstreams.endpoint import Endpoint
from services.gateway.upstreams.look import NotReady, look_at
from services.gateway.upstreams.resolve import Source
from services.gateway.upstreams.upstream import Upstream

log = logging.getLogger("forebay.upstreams")
LOOKS_AT_ONCE = 32
HANGS_AFTER = 3
"""Looks in a row without an answer, some nine seconds, after which what runs in a pod is taken elsewhere."""
MOST_WANTED = 1000
WANTED_FOR = 60.0
"""Seconds after which a model that nobody has waited for since is no longer wanted."""


class Fleet:
    """The pods. `start` keeps the picture fresh in the background until `stop`."""

    def __init__(
        self,
        source: Source,
        *,
        interval: float,
        metrics: GatewayMetrics,
        expected: Iterable[str] = (),
        rules: Rules = DEFAULT,
        retry_ratio: float = 0.2,
        load_bound: float = LOAD_BOUND,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """
        Args:
            expected: models that exist even while there is no pod of them.
            rules: of the pods' circuits.
            retry_ratio, load_bound: see `RetryBudget` and `choose`.
        """
        self.upstreams: list[Upstream] = []
        self.known_models: dict[str, dict[str, Any]] = {}
        self.retries = RetryBudget(retry_ratio, clock=clock)
        self.load_times = outlook.LoadTimes()
        self._source = source
        self._interval = interval
        self._metrics = metrics
        self._expected = frozenset(expected)
        self._rules = rules
        self._load_bound = load_bound
        self._clock = clock
        self._rng = rng
        self._stopped = False
        self._watcher: threading.Thread | None = None
        self._look_now = threading.Event()
        self._changed = threading.Condition()
        self._wanted: dict[str, tuple[float, float]] = {}
        """Models that requests wait for while there is no pod of them: since when, and when last."""
        # A pod that does not answer must not keep the look at the others waiting.
        self._lookers = ThreadPoolExecutor(LOOKS_AT_ONCE, "look")

    def start(self) -> None:
        self._source.start(self._look_now.set)
        self._watcher = threading.Thread(target=self._watch, name="fleet", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Ends the looks and closes the connections that are idle."""
        self._stopped = True
        self._look_now.set()
        self._source.stop()
        if self._watcher is not None:
            self._watcher.join()
        self._lookers.shutdown()
        for pod in self.upstreams:
            pod.pool.close()

    def models(self) -> dict[str, dict[str, Any]]:
        """The models that some ready pod serves, by name."""
        return {name: row for pod in self.upstreams if pod.ready for name, row in pod.models.items()}

    def default_model(self) -> str | None:
        """The model of a request that names none: the first one of the first ready pod."""
        return next(iter(self.models()), None) or next(iter(self.known_models), None)

    def label(self, model: str) -> str:
        """A request's model as a metric label: one that no pod ever served must not make a time series."""
        return model if model in self.known_models else "unknown"

    def choose(
        self,
        model: str,
        *,
        tried: Collection[Upstream] = (),
        resuming: bool = False,
        affinity: Affinity | None = None,
    ) -> Choice | None:
        """The pod for a request, as `choose.choose` says, None when there is none now."""
        choice = choose(
            self.upstreams,
            model,
            tried=tried,
            resuming=resuming,
            affinity=affinity,
            bound=self._load_bound,
            now=self._clock(),
            rng=self._rng,
        )
        if choice is not None:
            self._metrics.choices.labels(model, choice.policy).inc()
        return choice

    def wait_ready(self, model: str, timeout: float) -> bool:
        """Sleeps until a pod takes requests for the model; False when none does within `timeout` seconds."""
        now = self._clock()
        until = now + timeout
        with self._changed:
            since, last = self._wanted.get(model, (now, now))
            self._wanted[model] = (since if now - last < WANTED_FOR else now, now)
            if len(self._wanted) > MOST_WANTED:  # names that nobody serves, while it was not known that nobody does
                del self._wanted[next(iter(self._wanted))]
            while not any(outlook.takes(pod, model, now) for pod in self.upstreams):
                if now >= until:
                    return False
                probe = [pod.breaker.blocked_until for pod in self.upstreams if pod.ready and model in pod.models]
                self._changed.wait(min([until, *probe]) - now)
                now = self._clock()
        return True

    def expects(self, model: str) -> bool:
        """Whether there is, was or will be a pod of the model; the other names are typing errors."""
        return (
            model in self.known_models
            or model in self._expected
            or bool(outlook.coming(self.upstreams, model, self._clock()))
        )

    def phase(self, model: str) -> str | None:
        """Why no pod takes a request for the model now, in a few words, None when one does."""
        return outlook.phase(self.upstreams, model, self._clock())

    def ready_in(self, model: str) -> float:
        """Seconds until a pod will take a request for the model, by the load times that were measured."""
        return outlook.ready_in(self.upstreams, model, self.load_times, self._clock(), look=self._interval)

    def queue_wait(self, model: str) -> float:
        """Seconds that a new request for the model will wait in a pod's queue."""
        return outlook.queue_wait(self.upstreams, model, self._clock())

    def lost(self, pod: Upstream, reason: str) -> None:
        """Takes a pod that could not be reached out of the choice until it answers again."""
        if pod.ready:
            log.warning("pod lost", extra={"upstream": pod.url, "reason": reason})
            pod.down_since = self._clock()
        pod.ready = False
        pod.pool.close()

    def look(self) -> None:
        """One look at every pod there is now. Pods that are no longer named are dropped: what runs in them goes on."""
        known = {pod.url: pod for pod in self.upstreams}
        endpoints = self._source.endpoints()
        for endpoint in endpoints:
            if endpoint.url not in known:
                known[endpoint.url] = self._new(endpoint.url)
        self.upstreams = [known.pop(endpoint.url) for endpoint in endpoints]
        for gone in known.values():
            self.lost(gone, "no longer named")
        list(self._lookers.map(self._look_at, self.upstreams, endpoints))
        now = self._clock()
        for pod in laggards(self.upstreams, now):
            if pod.breaker.state == "closed":
                pod.breaker.trip(now)
                self._circuit_changed(pod)
        self._gauge()

    def _new(self, url: str) -> Upstream:
        return Upstream(url, rules=self._rules, clock=self._clock, on_change=self._circuit_changed)

    def _look_at(self, pod: Upstream, endpoint: Endpoint) -> None:
        if endpoint.model is not None:
            pod.expected |= {endpoint.model}
        try:
            models = look_at(pod)
            if not endpoint.ready:
                raise NotReady("its Service says so")
        except NotReady as why:
            if why.phase is not None:
                pod.phase = why.phase
            pod.expected |= why.models
            self.lost(pod, str(why))
            pod.silent_looks = pod.silent_looks + 1 if why.silent else 0
            if pod.silent_looks == HANGS_AFTER:
                log.warning("pod hangs", extra={"upstream": pod.url, "inflight": pod.inflight})
                pod.give_up()
            return
        pod.silent_looks = 0
        pod.models = models
        self.known_models.update(models)
        if not pod.ready:
            self._became_ready(pod)

    def _became_ready(self, pod: Upstream) -> None:
        now = self._clock()
        seconds = now - (pod.down_since if pod.down_since is not None else now)
        log.info("pod ready", extra={"upstream": pod.url, "models": sorted(pod.models), "seconds": round(seconds, 2)})
        loaded = pod.phase is not None or (pod.down_since == pod.seen_at and seconds > self._interval)
        if loaded:  # a process that was started anew, so nothing of what it did before counts
            pod.breaker = Breaker(self._rules)
            pod.times.clear()
        with self._changed:
            for model in pod.models:
                if loaded:
                    self.load_times.record(model, seconds)
                since, last = self._wanted.pop(model, (now, -WANTED_FOR))
                if now - last < WANTED_FOR:
                    self.load_times.record(model, now - since, from_nothing=True)
            pod.phase = pod.down_since = None
            pod.ready = True
            self._changed.notify_all()

    def _circuit_changed(self, pod: Upstream) -> None:
        breaker = pod.breaker
        if breaker.state == "open" and breaker.blocked_until > self._clock():
            cause = "slow" if breaker.slow else "failures"
            log.warning("circuit open", extra={"upstream": pod.url, "cause": cause})
            self._metrics.circuits_opened.labels(cause).inc()
        elif breaker.state == "closed":
            log.info("circuit closed", extra={"upstream": pod.url})
        with self._changed:
            self._changed.notify_all()

    def _gauge(self) -> None:
        for namespace, heard in self._source.heard_at().items():
            self._metrics.watch_heard.labels(namespace).set(heard)
        for name in self.known_models:
            serving = [pod for pod in self.upstreams if pod.ready and name in pod.models]
            self._metrics.upstreams_ready.labels(name).set(len(serving))
            self._metrics.circuits_open.labels(name).set(sum(pod.breaker.state != "closed" for pod in serving))

    def _watch(self) -> None:
        while not self._stopped:
            self._look_now.clear()
            try:
                self.look()
            except Exception:
                log.exception("the look at the pods failed")  # the next one may not
            self._look_now.wait(self._interval)
