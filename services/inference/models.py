"""The models of a pod: loaded once, kept while there is memory, and who used one longest ago goes first."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.common.errors import ApiError, DeadlineExceeded, HttpError, ModelNotFound, UpstreamUnavailable
from services.common.metrics import EngineMetrics
from services.common.settings import InferenceSettings
from services.inference.catalogue import parse_adapters, parse_pinned
from services.inference.engine.errors import SourceError
from services.inference.engine.ranks import ranks

if TYPE_CHECKING:
    from services.inference.engine.engine import Engine
    from services.inference.engine.meter import Load

log = logging.getLogger("forebay.models")

Watch = Callable[[Callable[[], None]], AbstractContextManager[object]]
"""Calls what it is given when the client leaves within its block."""


@dataclass
class Slot:
    """One model of the catalogue: where it comes from and how it stands."""

    source: str
    adapters: Mapping[str, str]
    """Sources of its LoRA adapters, by name."""
    pinned: bool
    """Whether it stays, however long nobody asks for it."""
    engine: Engine | None = None
    phase: str | None = None
    """What its loading is at, None when it is not being loaded."""
    failure: str | None = None
    users: int = 0
    used: float = 0.0


class Models:
    """The catalogue with what is loaded of it. All methods may be called from any thread."""

    def __init__(self, catalogue: dict[str, str], settings: InferenceSettings, metrics: EngineMetrics) -> None:
        """
        Args:
            catalogue: sources by name; the first is the one that `start` loads.

        Raises:
            ValueError: the settings on adapters and pinned models do not fit the catalogue, or it is more than several
                ranks can serve together.
        """
        self._adapters = parse_adapters(settings.adapters, catalogue)
        pinned = parse_pinned(settings.pinned, catalogue)
        if ranks() > 1 and len(catalogue) + len(self._adapters) > 1:
            # All ranks would have to load and evict at the same points.
            raise ValueError("A pod of several ranks serves one model, without adapters.")
        self._slots = {
            name: Slot(
                source,
                {one.name: one.source for one in self._adapters.values() if one.base == name},
                pinned=name in pinned,
            )
            for name, source in catalogue.items()
        }
        self._first = next(iter(catalogue))
        self._settings = settings
        self._metrics = metrics
        self._changed = threading.Condition()
        self._one_load = threading.Lock()
        self._budget: int | None = settings.model_memory
        self._closed = False

    def start(self) -> None:
        """Begins to load the first model, in the background."""
        with self._changed:
            self._begin(self._first)

    def status(self) -> tuple[dict[str, Any], int]:
        """The body and status of `/readyz`: ready once the first model is."""
        first = self._slots[self._first]
        if self._closed:
            return {"status": "failed", "reason": "The server is shutting down."}, 503
        if first.engine is None and first.failure is not None:
            return {"status": "failed", "reason": first.failure}, 503
        names = [*self._slots, *self._adapters]
        if first.engine is None:
            return {"status": "loading", "phase": first.phase or "resolve", "models": names}, 503
        if (trouble := self.trouble()) is not None:
            return {"status": "failed", "reason": trouble}, 503
        return {"status": "ready", "models": names}, 200

    def loads(self) -> list[Load]:
        """How full the engines of the loaded models are."""
        engines = [slot.engine for slot in self._slots.values()]
        return [engine.load() for engine in engines if engine is not None]

    def trouble(self) -> str | None:
        """Why the pod should be started anew, in one sentence: an engine hangs or has died. Never waits."""
        engines = [slot.engine for slot in self._slots.values() if slot.engine is not None]
        found = [engine.trouble(self._settings.step_timeout) for engine in engines]
        return next(filter(None, found), None)

    def describe(self) -> dict[str, dict[str, Any]]:
        """What `/v1/models` tells of each model and adapter, by name. Adapters have the fields of vLLM's list."""
        models = {name: _describe(slot) for name, slot in self._slots.items()}
        adapters = {
            name: models[one.base] | {"parent": one.base, "root": one.source} for name, one in self._adapters.items()
        }
        return models | adapters

    def adapter(self, name: str) -> str | None:
        """The LoRA adapter that a model's name asks for, as its engine knows it; None for a model as it is."""
        found = self._adapters.get(name)
        return found.name if found is not None else None

    @contextmanager
    def use(self, name: str, deadline: float, watch: Watch = nullcontext) -> Iterator[Engine]:
        """The engine of a model or of an adapter's model; loads it first where need be, and keeps it from being evicted
        within the block.

        Args:
            deadline: how long to wait for a load, on the monotonic clock.
            watch: notices that the client leaves, who then waits no longer.

        Raises:
            ModelNotFound: the catalogue has no such name.
            DeadlineExceeded: it was not loaded in time. Loading goes on.
            HttpError: 499, the client left. Loading goes on.
            UpstreamUnavailable: it cannot be loaded.
        """
        base = self._adapters[name].base if name in self._adapters else name
        slot = self._slots.get(base)
        if slot is None:
            raise ModelNotFound(name)
        with self._changed:
            if slot.engine is None:
                self._await_load(base, slot, deadline, watch)
            engine = slot.engine
            assert engine is not None
            slot.users += 1
        try:
            yield engine
        finally:
            with self._changed:
                slot.users -= 1
                slot.used = time.monotonic()

    def drain(self) -> None:
        """Makes `/readyz` fail from now on, so that nobody new is sent here. Safe in a signal handler."""
        self._closed = True

    def close(self) -> None:
        """Ends every request that still runs, with an error, and stops the engines."""
        self._closed = True
        for slot in self._slots.values():
            if slot.engine is not None:
                slot.engine.close()

    def _await_load(self, name: str, slot: Slot, deadline: float, watch: Watch) -> None:
        """Returns, with the condition held as it was before, when the slot has an engine."""
        waited = left = False

        def leave() -> None:
            nonlocal left
            with self._changed:
                left = True
                self._changed.notify_all()

        with watch(leave):
            while slot.engine is None:
                if slot.phase is None:  # nobody loads it: not yet, not any more, or it was evicted again already
                    if waited and slot.failure is not None:
                        raise UpstreamUnavailable(slot.failure, retry_after=10)
                    self._begin(name)
                waited = True
                if not self._changed.wait(min(deadline - time.monotonic(), threading.TIMEOUT_MAX)):
                    raise DeadlineExceeded(f"The model '{name}' is being loaded and was not ready in time.")
                if left:
                    raise HttpError(499, "The client went away.", code="client_gone")

    def _begin(self, name: str) -> None:
        if self._closed:
            raise UpstreamUnavailable("The server is shutting down.", retry_after=10)
        slot = self._slots[name]
        slot.phase, slot.failure = "resolve", None
        threading.Thread(target=self._load, args=(name, slot), name=f"load-{name}", daemon=True).start()

    def _load(self, name: str, slot: Slot) -> None:
        engine, failure = None, None
        try:
            with self._one_load:
                engine = self._loaded_engine(name, slot)
        except (SourceError, ApiError) as error:
            failure = str(error)
            log.error("model not loaded", extra={"model": name, "reason": failure})
        except Exception as error:
            failure = f"The model '{name}' could not be loaded: {error}"
            log.exception("model not loaded", extra={"model": name})
        with self._changed:
            slot.engine, slot.failure, slot.phase = engine, failure, None
            slot.used = time.monotonic()
            self._changed.notify_all()

    def _loaded_engine(self, name: str, slot: Slot) -> Engine:
        # Here, not above: torch takes seconds to import, and the pod shall answer its probes meanwhile.
        from services.inference.engine import load, machine  # noqa: PLC0415
        from services.inference.engine.energy import energy_counter  # noqa: PLC0415
        from services.inference.engine.engine import Engine  # noqa: PLC0415
        from services.inference.engine.parallel import devices  # noqa: PLC0415

        settings = self._settings
        device = load.pick_device(settings.device)
        if self._budget is None:
            self._budget = int(machine.free_memory(device) * 0.8)

        def phase(current: str) -> None:
            slot.phase = current
            log.info("loading", extra={"model": name, "phase": current})

        def make_room(needed: int) -> int:
            return self._make_room(name, needed)

        loaded = load.load(slot.source, settings, adapters=slot.adapters, phase=phase, make_room=make_room)
        for step, seconds in loaded.seconds.items():
            self._metrics.load_time.labels(name, step).set(seconds)
        total = round(sum(loaded.seconds.values()), 2)
        log.info("model ready", extra={"model": name, "kernel": loaded.kernel, "seconds": total})
        engine = Engine(
            name,
            loaded,
            self._metrics,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            step_tokens=settings.step_tokens,
            chunk_tokens=settings.chunk_tokens,
            prefix_cache=settings.prefix_cache,
            energy=energy_counter(devices(device)),
        )
        # What is there now stays: looking through all of it, the collector would stop the whole pod for half a second.
        gc.collect()
        gc.freeze()
        return engine

    def _make_room(self, name: str, needed: int) -> int:
        """Stops idle models, the one used longest ago first, until `needed` bytes are within the budget.

        Returns:
            The bytes that are left of it then.

        Raises:
            HttpError: 503, they are not to be had.
        """
        assert self._budget is not None
        while True:
            with self._changed:
                loaded = {key: slot for key, slot in self._slots.items() if slot.engine is not None}
                taken = sum(slot.engine.loaded.bytes for slot in loaded.values() if slot.engine is not None)
                if taken + needed <= self._budget:
                    return self._budget - taken - needed
                idle = [key for key, slot in loaded.items() if slot.users == 0 and not slot.pinned]
                if not idle:
                    raise HttpError(
                        503,
                        f"The model '{name}' does not fit into memory: it needs {needed / 1e9:.1f} GB, and "
                        f"{max(0, self._budget - taken) / 1e9:.1f} of {self._budget / 1e9:.1f} GB are left.",
                        code="insufficient_memory",
                    )
                oldest = min(idle, key=lambda key: loaded[key].used)
                engine, loaded[oldest].engine = loaded[oldest].engine, None
            if engine is not None:
                engine.close()
            del engine
            gc.unfreeze()
            gc.collect()  # a model's modules refer to each other in circles
            log.info("model evicted", extra={"model": oldest, "for_model": name})


def _describe(slot: Slot) -> dict[str, Any]:
    engine = slot.engine
    state = "loaded" if engine is not None else "loading" if slot.phase is not None else "not loaded"
    more = {}
    if engine is not None:
        loaded = engine.loaded
        more = {
            "context_length": loaded.context_length,
            "max_model_len": loaded.context_length,  # vLLM's name of it, which clients of vLLM look for
            "quantization": loaded.quantization,
            "kernel": loaded.kernel,
        }
    return {"state": state, **more}
