"""A request in the hands of the one who waits for its tokens: pieces come out of it, until a last one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Literal

from services.common.errors import ApiError, DeadlineExceeded
from services.inference.engine.detokenize import Detokenizer
from services.inference.engine.sequence import Sequence

LATE = 1.0
"""Seconds that the engine has to tell a request of its deadline; after that its consumer no longer counts on it."""

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What one step brought a request: its token, the text that became certain, and the finish reason with the last.

    token: None where no step was needed, since the tokens that a request resumed were the whole answer.
    logprob, top: the token's log probability, and the likeliest tokens with theirs, where the request asked for them.
    """

    token: int | None
    text: str
    finish: Finish | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Generation:
    """A request in the engine. Iterate over it for its pieces."""

    sequence: Sequence
    detokenizer: Detokenizer
    deadline: float
    eos_ids: frozenset[int]
    """Tokens that end the answer."""
    _wake: threading.Condition = field(repr=False)
    arrived: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    last_token: float | None = None
    cancelled: bool = False
    retried: bool = False
    """Whether a step of it ran out of memory before."""
    outcome: str | None = None
    """How it ended, as the metrics name it; None while it runs."""
    on_end: Callable[[], None] | None = field(default=None, repr=False)
    """Called in the engine's thread once it has ended, before its consumer is told; must neither wait nor raise."""
    pieces: SimpleQueue[tuple[Generation, Piece | ApiError]] = field(default_factory=SimpleQueue, repr=False)
    """Where its pieces go; those that are read together have one."""

    def __iter__(self) -> Iterator[Piece]:
        """The pieces as they come, up to and with the one that has a finish reason.

        Raises:
            ApiError: why there will be no more: the deadline passed, the client went away, a step failed.
        """
        return (piece for _, piece in together([self]))

    def cancel(self) -> None:
        """Ends the request before the next step. May be called from any thread, at any time, and again."""
        self.cancelled = True
        with self._wake:
            self._wake.notify()

    def read(self, token: int, count: int) -> tuple[str, Finish | None]:
        """For the engine: the text that token number `count` makes certain, and the finish reason if it is the last."""
        if token in self.eos_ids:
            return self.detokenizer.finish(), "stop"
        text = self.detokenizer.push(token)
        if self.detokenizer.stopped:
            return text, "stop"
        if count >= self.sequence.max_tokens:
            return text + self.detokenizer.finish(), "length"
        return text, None

    def put(self, piece: Piece | ApiError) -> None:
        """For the engine: the next piece, or the error that ends the request."""
        self.pieces.put((self, piece))


def together(generations: Listing[Generation]) -> Iterator[tuple[Generation, Piece]]:
    """The pieces of requests that were submitted to be read together, as they come, up to the last finish reason.

    Raises:
        ApiError: why there will be no more of one of them.
    """
    deadline, unfinished = generations[0].deadline + LATE, len(generations)
    while unfinished:
        left = min(max(deadline - time.monotonic(), 0), threading.TIMEOUT_MAX)
        try:
            generation, piece = generations[0].pieces.get(timeout=left)
        except Empty:  # the engine hangs in a step
            raise too_late() from None
        if isinstance(piece, ApiError):
            raise piece
        yield generation, piece
        unfinished -= piece.finish is not None


def too_late() -> ApiError:
    """What a request ends with whose deadline passed."""
    return DeadlineExceeded("The request took longer than its time-out.")
