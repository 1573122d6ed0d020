"""The loop: one thread that takes requests in, computes step after step, and hands tokens to who waits for them.

Only that thread touches the scheduler, the runner and the sequences. Other threads leave a request in the inbox, or a
mark on it, and wake the loop; tokens come back through a queue of the request's own. Whatever happens to a request, its
queue ends with a last piece: a finish reason or an error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Listing
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Literal

from services.common.errors import ApiError, DeadlineExceeded, HttpError, InvalidRequest, QueueFull, UpstreamUnavailable
from services.common.metrics import EngineMetrics
from services.inference.engine.detokenize import Detokenizer
from services.inference.engine.load import Loaded
from services.inference.engine.sample import sample
from services.inference.engine.schedule import Scheduler, Work
from services.inference.engine.sequence import Sampling, Sequence

log = logging.getLogger("forebay.engine")

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What one step brought a request: its token, the text that became certain, and the finish reason with the last."""

    token: int
    text: str
    finish: Finish | None = None


@dataclass(eq=False)
class Generation:
    """A request in the engine, in the hands of the one who waits for its tokens."""

    sequence: Sequence
    detokenizer: Detokenizer
    deadline: float
    _wake: threading.Condition = field(repr=False)
    arrived: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    last_token: float | None = None
    cancelled: bool = False
    outcome: str | None = None
    """How it ended, as the metrics name it; None while it runs."""
    _pieces: SimpleQueue[Piece | ApiError] = field(default_factory=SimpleQueue)

    def __iter__(self) -> Iterator[Piece]:
        """The pieces as they come, up to and with the one that has a finish reason.

        Raises:
            ApiError: why there will be no more: the deadline passed, the client went away, a step failed.
        """
        while True:
            piece = self._pieces.get()
            if isinstance(piece, ApiError):
                raise piece
            yield piece
            if piece.finish is not None:
                return

    def cancel(self) -> None:
        """Ends the request before the next step. May be called from any thread, at any time, and again."""
        self.cancelled = True
        with self._wake:
            self._wake.notify()

    def put(self, piece: Piece | ApiError) -> None:
        """For the engine: the next piece, or the error that ends the request."""
        self._pieces.put(piece)


class Engine:
    """A loaded model at work."""

    def __init__(
        self, name: str, loaded: Loaded, metrics: EngineMetrics, *, max_batch: int, max_queue: int, step_tokens: int
    ) -> None:
        self.name = name
        self.loaded = loaded
        self._capacity = max_batch + max_queue
        self._scheduler = Scheduler(loaded.pool, max_batch=max_batch, step_tokens=step_tokens)
        self._meter = _Meter(name, metrics)
        self._active: dict[Sequence, Generation] = {}
        self._inbox: list[Generation] = []
        self._wake = threading.Condition()
        self._closing = False
        self._pace = _Pace()
        self._thread = threading.Thread(target=self._loop, name=f"engine-{name}", daemon=True)
        self._thread.start()

    def submit(
        self, prompt: Listing[int], sampling: Sampling, *, max_tokens: int, stops: Iterable[str] = (), deadline: float
    ) -> Generation:
        """Takes a request in.

        Args:
            prompt: token ids, at least one, fewer than the context length.
            max_tokens: at least 1; cut to what the context length leaves.
            stops: text that ends the answer and is not part of it.
            deadline: when to give up, on the monotonic clock.

        Raises:
            QueueFull: batch and queue are full; tells when to come again.
        """
        max_tokens = min(max_tokens, self.loaded.context_length - len(prompt))
        if not prompt or max_tokens < 1:
            raise InvalidRequest("The prompt is empty or leaves no room for an answer.", param="prompt")
        sequence = Sequence(list(prompt), len(prompt), max_tokens, sampling)
        generation = Generation(sequence, Detokenizer(self._decode, prompt, stops), deadline, self._wake)
        with self._wake:
            if self._closing:
                raise _shutting_down()
            if len(self._inbox) + len(self._active) >= self._capacity:
                raise QueueFull("The server is busy and its queue is full.", retry_after=self._retry_after())
            self._inbox.append(generation)
            self._wake.notify()
        return generation

    def close(self) -> None:
        """Ends all requests with an error and stops the loop; returns when it has stopped."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._active or self._closing):
                    self._wake.wait()
                arrivals, self._inbox = self._inbox, []
                for generation in arrivals:
                    self._active[generation.sequence] = generation
                    self._scheduler.add(generation.sequence)
            try:
                self._drop_the_dead()
                self._step()
            except Exception:
                log.exception("the engine's loop failed", extra={"model": self.name})
                self._fail(list(self._active), ApiError("The engine failed while it computed the answer."))
            self._meter.load(self._scheduler)
            if self._closing:
                with self._wake:
                    self._fail(list(self._active), _shutting_down())
                    for generation in self._inbox:
                        generation.put(_shutting_down())
                return

    def _drop_the_dead(self) -> None:
        now = time.monotonic()
        for sequence, generation in list(self._active.items()):
            if generation.cancelled:
                self._end(sequence, "cancelled", HttpError(499, "The client went away.", code="client_gone"))
            elif generation.deadline <= now:
                self._end(sequence, "deadline", _too_late())

    def _step(self) -> None:
        plan = self._scheduler.plan()
        if not plan:
            return
        started = time.monotonic()
        sampling = [work.sequence for work in plan if work.samples]
        try:
            logits = self.loaded.runner.forward(plan)
            rules = [sequence.sampling for sequence in sampling]
            tokens = sample(logits, rules, [sequence.generated for sequence in sampling]) if sampling else []
        except Exception:
            log.exception("a step failed", extra={"model": self.name, "batch": len(plan)})
            self._fail([work.sequence for work in plan], ApiError("The engine failed while it computed the answer."))
            return
        self._scheduler.commit(plan, tokens)
        now = time.monotonic()
        self._meter.step(plan, len(tokens), now - started)
        for sequence, token in zip(sampling, tokens, strict=True):
            self._deliver(sequence, token, now)

    def _deliver(self, sequence: Sequence, token: int, now: float) -> None:
        generation = self._active[sequence]
        self._meter.token(generation, now)
        text = ""
        finish: Finish | None = None
        try:
            if token in self.loaded.eos_ids:
                finish = "stop"
            else:
                text = generation.detokenizer.push(token)
                if generation.detokenizer.stopped:
                    finish = "stop"
                elif sequence.generated >= sequence.max_tokens:
                    finish = "length"
            if finish is not None:
                text += generation.detokenizer.finish()
        except Exception:
            log.exception("a token could not be written as text", extra={"model": self.name})
            self._fail([sequence], ApiError("The engine failed while it wrote the answer."))
            return
        if finish is None and generation.deadline <= now:
            self._end(sequence, "deadline", _too_late())  # not given out: before the first token it is a proper 504
        elif finish is None:
            generation.put(Piece(token, text))
        else:
            self._end(sequence, finish, Piece(token, text, finish))

    def _fail(self, sequences: Iterable[Sequence], error: ApiError) -> None:
        for sequence in sequences:
            self._end(sequence, "error", error)

    def _end(self, sequence: Sequence, outcome: str, last: Piece | ApiError) -> None:
        """Takes a request out, then tells its consumer: who reads the last piece finds the slot free."""
        generation = self._active.pop(sequence)
        with suppress(ValueError):  # not there, when the loop failed between inbox and queue
            self._scheduler.remove(sequence)
        generation.outcome = outcome
        self._pace.ended()
        self._meter.ended(generation, outcome)
        self._meter.load(self._scheduler)
        generation.put(last)

    def _retry_after(self) -> float:
        """Seconds until about half of those who wait now have had their turn, by the pace of late."""
        return self._pace.seconds * max(1, len(self._scheduler.waiting) / 2)

    def _decode(self, ids: list[int]) -> str:
        text: str = self.loaded.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _too_late() -> ApiError:
    return DeadlineExceeded("The request took longer than its time-out.")


def _shutting_down() -> ApiError:
    return UpstreamUnavailable("The server is shutting down.", retry_after=1)


class _Pace:
    """Mean seconds between two requests that end, the later ones weighing more."""

    WEIGHT = 0.1

    def __init__(self) -> None:
        self.seconds = 1.0
        self._last: float | None = None

    def ended(self) -> None:
        now = time.monotonic()
        if self._last is not None:
            self.seconds += self.WEIGHT * (min(now - self._last, 60.0) - self.seconds)
        self._last = now


class _Meter:
    """The engine's metrics, bound to one model."""

    def __init__(self, model: str, metrics: EngineMetrics) -> None:
        self._model = model
        self._requests = metrics.requests
        self._ttft = metrics.ttft.labels(model)
        self._token_time = metrics.token_time.labels(model)
        self._duration = metrics.duration.labels(model)
        self._prompt_tokens = metrics.prompt_tokens.labels(model)
        self._generated_tokens = metrics.generated_tokens.labels(model)
        self._waiting = metrics.waiting.labels(model)
        self._running = metrics.running.labels(model)
        self._batch = metrics.batch.labels(model)
        self._kv_usage = metrics.kv_usage.labels(model)
        self._step_time = metrics.step_time.labels(model)

    def load(self, scheduler: Scheduler) -> None:
        self._waiting.set(len(scheduler.waiting))
        self._running.set(len(scheduler.running))
        self._kv_usage.set(scheduler.pool.used / scheduler.pool.count)

    def step(self, plan: Listing[Work], sampled: int, seconds: float) -> None:
        self._batch.observe(len(plan))
        self._step_time.observe(seconds)
        for work in plan:
            end, prompt = work.sequence.computed, work.sequence.prompt_length
            self._prompt_tokens.inc(max(0, min(end, prompt) - (end - work.count)))
        self._generated_tokens.inc(sampled)

    def token(self, generation: Generation, now: float) -> None:
        if generation.last_token is None:
            generation.first_token = now
            self._ttft.observe(now - generation.arrived)
        else:
            self._token_time.observe(now - generation.last_token)
        generation.last_token = now

    def ended(self, generation: Generation, outcome: str) -> None:
        self._requests.labels(self._model, outcome).inc()
        self._duration.observe(time.monotonic() - generation.arrived)
