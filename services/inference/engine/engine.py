"""The loop: one thread that takes requests in, computes step after step, and hands tokens to who waits for them.

Only that thread touches the scheduler, the runner and the sequences. Other threads leave a request in the inbox, or a
mark on it, and wake the loop; tokens come back through a queue of the request's own. Whatever happens to a request, its
queue ends with a last piece: a finish reason or an error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from collections.abc import Sequence as Listing
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from services.common.errors import ApiError, HttpError, InvalidRequest, QueueFull, UpstreamUnavailable
from services.common.metrics import EngineMetrics
from services.inference.engine.detokenize import Detokenizer
from services.inference.engine.energy import EnergyCounter
from services.inference.engine.generation import Finish, Generation, Piece, too_late
from services.inference.engine.load import Loaded
from services.inference.engine.memory import is_out_of_memory, release_unused
from services.inference.engine.meter import Load, Meter, Pace
from services.inference.engine.sample import Draw, sample
from services.inference.engine.schedule import CHUNK_TOKENS, Scheduler, Work
from services.inference.engine.sequence import Sampling, Sequence

log = logging.getLogger("forebay.engine")

SHRINK = 10
"""A step that lacked memory costs the KV memory one part in so many."""

Failure = Literal["out_of_memory", "error"]
"""Why a step gave nothing, as the metrics name it."""


class Engine:
    """A loaded model at work."""

    def __init__(
        self,
        name: str,
        loaded: Loaded,
        metrics: EngineMetrics,
        *,
        max_batch: int,
        max_queue: int,
        step_tokens: int,
        chunk_tokens: int = CHUNK_TOKENS,
        prefix_cache: bool = True,
        energy: EnergyCounter | None = None,
    ) -> None:
        self.name = name
        self.loaded = loaded
        self._capacity = max_batch + max_queue
        self._scheduler = Scheduler(
            loaded.pool,
            max_batch=max_batch,
            step_tokens=step_tokens,
            chunk_tokens=chunk_tokens,
            twice_at=loaded.twice_at,
            prefix_cache=prefix_cache,
        )
        self._meter = Meter(name, metrics, energy)
        self._active: dict[Sequence, Generation] = {}
        self._inbox: list[Generation] = []
        self._wake = threading.Condition()
        self._closing = False
        self._stopped = False
        self._busy_since: float | None = None
        self._pace = Pace()
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: Listing[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        stops: Iterable[str] = (),
        ignore_eos: bool = False,
        stop_ids: Iterable[int] = (),
        deadline: float,
        salt: str = "",
        adapter: str | None = None,
        weight: float = 1.0,
        priority: int = 0,
        resume: Listing[int] = (),
        beside: Generation | None = None,
    ) -> Generation:
        """Takes a request in.

        Args:
            prompt: token ids, at least one, fewer than the context length.
            max_tokens: at least 1; cut to what the context length leaves.
            stops: text that ends the answer and is not part of it.
            ignore_eos: the model's end token does not end the answer.
            stop_ids: more tokens that end the answer and are not part of its text.
            deadline: when to give up, on the monotonic clock.
            salt, adapter, weight, priority: see `Sequence`.
            resume: the answer's first tokens, generated before, here or elsewhere, whose text the client has. They
                count as generated, and what comes is what came after them then.
            beside: another request, that this one is to be read `together` with.

        Raises:
            InvalidRequest: no prompt, no room for an answer, or `resume` is not the beginning of one.
            QueueFull: batch and queue are full; tells when to come again.
            UpstreamUnavailable: the engine has stopped.
        """
        max_tokens = min(max_tokens, self.loaded.context_length - len(prompt))
        if not prompt or max_tokens < 1:
            raise InvalidRequest("The prompt is empty or leaves no room for an answer.", param="prompt")
        eos_ids = (frozenset[int]() if ignore_eos else self.loaded.eos_ids) | frozenset(stop_ids)
        if sampling.min_tokens:
            sampling = replace(sampling, ends=eos_ids)
        sequence = Sequence([*prompt, *resume], len(prompt), max_tokens, sampling, salt, adapter, weight, priority)
        generation = Generation(sequence, Detokenizer(self._decode, prompt, stops), deadline, eos_ids, self._wake)
        if beside is not None:
            generation.pieces = beside.pieces
        finish = self._reread(generation, resume)
        with self._wake:
            if self._closing or self._stopped:
                raise _shutting_down()
            if finish is None:
                if len(self._inbox) + len(self._active) >= self._capacity:
                    raise QueueFull("The server is busy and its queue is full.", retry_after=self._retry_after())
                self._inbox.append(generation)
                self._wake.notify()
        if finish is not None:
            self._tell(generation, finish, Piece(None, "", finish))
        return generation

    def load(self) -> Load:
        """How full it is now. Any thread may look: the numbers are right one by one, not all of one moment."""
        scheduler = self._scheduler
        waiting = len(scheduler.waiting) + len(self._inbox)
        return Load(waiting, len(scheduler.running), scheduler.pool.used / scheduler.pool.count, self._pace.rate)

    def trouble(self, step_timeout: float) -> str | None:
        """Why the engine gets no further, in one sentence; None while it does. Never waits.

        Args:
            step_timeout: seconds that a step may take.
        """
        since = self._busy_since
        if self._closing:
            return None
        if self._stopped:
            return f"The engine of the model '{self.name}' has stopped."
        if since is not None and (seconds := time.monotonic() - since) > step_timeout:
            return f"A step of the model '{self.name}' has not come back for {seconds:.0f} seconds."
        return None

    def close(self) -> None:
        """Ends all requests with an error and stops the loop; returns when it has stopped."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._await_work():
                try:
                    self._take_in()
                    self._drop_the_dead()
                    self._step()
                except Exception:
                    log.exception("the engine's loop failed", extra={"model": self.name})
                    self._fail(list(self._active), ApiError("The engine failed while it computed the answer."))
                self._meter.load(self._scheduler)
        finally:
            with self._wake:
                self._stopped = True
                self._active.update((generation.sequence, generation) for generation in self._inbox)
                self._inbox = []
            self._fail(list(self._active), _shutting_down())

    def _await_work(self) -> bool:
        """Sleeps until there is something to do; False when the engine is to stop."""
        with self._wake:
            self._busy_since = None
            while not (self._inbox or self._active or self._closing):
                self._pace.rests()
                self._wake.wait()
            self._busy_since = time.monotonic()
            return not self._closing

    def _take_in(self) -> None:
        with self._wake:
            arrivals, self._inbox = self._inbox, []
            self._active.update((generation.sequence, generation) for generation in arrivals)
        for generation in arrivals:
            try:
                self._scheduler.add(generation.sequence)
            except ValueError as error:
                self._end(generation.sequence, "error", InvalidRequest(f"The request cannot be computed: {error}."))

    def _drop_the_dead(self) -> None:
        now = time.monotonic()
        for sequence, generation in list(self._active.items()):
            if generation.cancelled:
                self._end(sequence, "cancelled", HttpError(499, "The client went away.", code="client_gone"))
            elif generation.deadline <= now:
                self._end(sequence, "deadline", too_late())

    def _step(self) -> None:
        self._meter.step_begins()
        plan = self._scheduler.plan()
        if not plan:
            return
        sampling = [work.sequence for work in plan if work.samples]
        draws = self._compute(plan, sampling)
        if isinstance(draws, str):
            self._recover(plan, draws)
            return
        self._scheduler.commit(plan, [draw.token for draw in draws])
        self._meter.step_ends(plan, len(draws))
        now = time.monotonic()
        for sequence, draw in zip(sampling, draws, strict=True):
            self._deliver(sequence, draw, now)

    def _compute(self, plan: Listing[Work], sampling: Listing[Sequence]) -> list[Draw] | Failure:
        try:
            logits = self.loaded.runner.forward(plan)
            return sample(logits, sampling) if sampling else []
        except Exception as error:
            log.exception("a step failed", extra={"model": self.name, "batch": len(plan)})
            return "out_of_memory" if is_out_of_memory(error) else "error"

    def _recover(self, plan: Listing[Work], failure: Failure) -> None:
        """Ends the requests of a failed step. Where it lacked memory, has them tried once more and takes on less.

        Outside the handler of the error, whose traceback holds the step's tensors.
        """
        self._meter.step_failed(failure)
        if failure == "error":
            self._fail([work.sequence for work in plan], ApiError("The engine failed while it computed the answer."))
            return
        for work in plan:
            generation = self._active[work.sequence]
            if generation.retried:
                self._end(work.sequence, "error", self._no_memory())
            else:
                generation.retried = True
                self._scheduler.requeue(work.sequence)
        pool, scheduler = self._scheduler.pool, self._scheduler
        # The longest request must still fit, or it would wait for ever.
        pool.shrink(-(-pool.count // SHRINK), keep=pool.blocks_for(self.loaded.context_length))
        scheduler.step_tokens = max(scheduler.max_batch, scheduler.step_tokens // 2)
        release_unused()
        left = {"blocks": pool.count, "step_tokens": scheduler.step_tokens}
        log.warning("out of memory: the engine takes on less", extra={"model": self.name, **left})

    def _deliver(self, sequence: Sequence, draw: Draw, now: float) -> None:
        generation = self._active[sequence]
        self._meter.token(generation, now)
        try:
            text, finish = generation.read(draw.token, sequence.generated)
        except Exception:
            log.exception("a token could not be written as text", extra={"model": self.name})
            self._fail([sequence], ApiError("The engine failed while it wrote the answer."))
            return
        piece = Piece(draw.token, text, finish, draw.logprob, draw.top)
        if finish is not None:
            self._end(sequence, finish, piece)
        elif generation.deadline <= now:
            self._end(sequence, "deadline", too_late())  # not given out: before the first token it is a proper 504
        else:
            generation.put(piece)

    def _fail(self, sequences: Iterable[Sequence], error: ApiError) -> None:
        for sequence in sequences:
            self._end(sequence, "error", error)

    def _end(self, sequence: Sequence, outcome: str, last: Piece | ApiError) -> None:
        """Takes a request out, then tells its consumer: who reads the last piece finds the slot free."""
        generation = self._active.pop(sequence)
        with suppress(ValueError):  # not there, when the loop failed between inbox and queue
            self._scheduler.remove(sequence)
        self._pace.ended()
        self._meter.load(self._scheduler)
        self._tell(generation, outcome, last)

    def _tell(self, generation: Generation, outcome: str, last: Piece | ApiError) -> None:
        generation.outcome = outcome
        self._meter.ended(generation, outcome)
        tell, generation.on_end = generation.on_end, None  # once, and then it holds nothing any longer
        if tell is not None:
            tell()
        generation.put(last)

    def _reread(self, generation: Generation, resume: Listing[int]) -> Finish | None:
        """Brings the text to where it was after these tokens; tells how the answer ended, if it did with the last."""
        finish: Finish | None = None
        for count, token in enumerate(resume, 1):
            if finish is not None or not 0 <= token < self.loaded.vocabulary:
                raise InvalidRequest("These tokens do not begin an answer to this request.", param="resume_token_ids")
            _, finish = generation.read(token, count)
        return finish

    def _retry_after(self) -> float:
        """Seconds until about half of those who wait now have had their turn, by the pace of late."""
        return self._pace.seconds * max(1, len(self._scheduler.waiting) / 2)

    def _no_memory(self) -> ApiError:
        message = "The server ran out of memory while it computed the answer."
        return HttpError(503, message, code="out_of_memory", retry_after=self._retry_after())

    def _decode(self, ids: list[int]) -> str:
        text: str = self.loaded.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _shutting_down() -> ApiError:
    return UpstreamUnavailable("The server is shutting down.", retry_after=1)
