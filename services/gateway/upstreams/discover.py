"""Which pods there are, which of them take requests, and what they serve: a look at each, every second."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from services.common.metrics import GatewayMetrics
from services.gateway.upstreams.choose import Upstream
from services.gateway.upstreams.exchange import Broken, Exchange, Unreachable
from services.gateway.upstreams.resolve import Source

log = logging.getLogger("forebay.upstreams")
LOOK_TIMEOUT = 2.0
LOOKS_AT_ONCE = 32


class Fleet:
    """The pods. `start` keeps the picture fresh in the background until `stop`."""

    def __init__(self, source: Source, *, interval: float, metrics: GatewayMetrics) -> None:
        self.upstreams: list[Upstream] = []
        self.known_models: dict[str, dict[str, Any]] = {}
        self._source = source
        self._interval = interval
        self._metrics = metrics
        self._stopped = threading.Event()
        # A pod that does not answer must not keep the look at the others waiting.
        self._lookers = ThreadPoolExecutor(LOOKS_AT_ONCE, "look")

    def start(self) -> None:
        threading.Thread(target=self._watch, name="fleet", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def models(self) -> dict[str, dict[str, Any]]:
        """The models that some ready pod serves, by name."""
        return {name: row for pod in self.upstreams if pod.ready for name, row in pod.models.items()}

    def default_model(self) -> str | None:
        """The model of a request that names none: the first one of the first ready pod."""
        return next(iter(self.models()), None) or next(iter(self.known_models), None)

    def label(self, model: str) -> str:
        """A request's model as a metric label: one that no pod ever served must not make a time series."""
        return model if model in self.known_models else "unknown"

    def lost(self, pod: Upstream, reason: str) -> None:
        """Takes a pod that could not be reached out of the choice until it answers again."""
        if pod.ready:
            log.warning("pod lost", extra={"upstream": pod.url, "reason": reason})
        pod.ready = False
        pod.pool.close()

    def look(self) -> None:
        """One look at every pod there is now; pods that are no longer named are dropped."""
        known = {pod.url: pod for pod in self.upstreams}
        urls = self._source.urls()
        self.upstreams = [known.get(url) or Upstream(url) for url in urls]
        for url in known.keys() - urls:
            self.lost(known[url], "no longer named")
        list(self._lookers.map(self._look_at, self.upstreams))
        for name in self.known_models:
            count = sum(pod.ready and name in pod.models for pod in self.upstreams)
            self._metrics.upstreams_ready.labels(name).set(count)

    def _look_at(self, pod: Upstream) -> None:
        try:
            models = _models_of(pod)
        except (Unreachable, Broken, TimeoutError, ValueError, KeyError, TypeError) as error:
            self.lost(pod, f"{type(error).__name__}: {error}")
            return
        if not pod.ready:
            log.info("pod ready", extra={"upstream": pod.url, "models": sorted(models)})
        pod.models, pod.ready = models, True
        self.known_models.update(models)

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self.look()
            self._stopped.wait(self._interval)


def _models_of(pod: Upstream) -> dict[str, dict[str, Any]]:
    # Engines other than ours have no /readyz; one that lists its models takes requests.
    status, body = _get(pod, "/readyz")
    if status not in (200, 404):
        raise Unreachable(f"not ready, {status}")
    if status == 200 and pod.models and pod.models.keys() == set(json.loads(body).get("models", ())):
        return pod.models
    status, body = _get(pod, "/v1/models")
    if status != 200:
        raise Unreachable(f"/v1/models answers {status}")
    rows = json.loads(body)["data"]
    return {row["id"]: {name: value for name, value in row.items() if name != "id"} for row in rows}


def _get(pod: Upstream, path: str) -> tuple[int, bytes]:
    exchange = Exchange(pod.pool, time.monotonic() + LOOK_TIMEOUT)
    try:
        response = exchange.send("GET", path, {"Accept": "application/json"})
        return response.status, exchange.read()
    finally:
        exchange.close()
