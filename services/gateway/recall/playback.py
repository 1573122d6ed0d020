"""A tape as it is read: for as long as somebody writes it, and who goes on with it when nobody does."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator

from services.cache.connection import CacheDown
from services.cache.tape import Batch, Begin, End
from services.common import sse
from services.common.errors import ClientGone
from services.gateway.call import Call
from services.gateway.hangup import HangupWatch
from services.gateway.parts import Gateway

CHECKS = (0.05, 0.2, 0.5)
"""Seconds of silence after which it is asked whether the writer is still there; the last one again and again."""
ENOUGH = 4
"""Doubts that the writer is still there, in a row, after which somebody else goes on: two where its process was not
found, one where only the call had ended, whose last words may still be on their way to the tape."""
WHOLE = frozenset({"ok", "cached"})
CUT = frozenset({"client_gone", "timeout", "error"})
"""Ends of a writer that say nothing about the answer: one of those who wait for it goes on."""
UNSHARED = "unshared"
"""The end of a writer whose answer can't be told by a tape of text: each who waits for it makes its own."""


class Playback:
    """The entries of the tape `key`, from its beginning, for `call`. `close` must be called.

    Args:
        writer: the id of the call that is to write it, and its process; None where the tape itself says so.
        answer_key: where the writer may leave its answer instead of a tape; "" where it does not.

    Raises:
        CacheDown: Redis is not reachable.
    """

    def __init__(
        self, gateway: Gateway, call: Call, key: str, writer: tuple[str, str] | None, answer_key: str = ""
    ) -> None:
        self.key = key
        self.begin: Begin | None = None
        """The latest who wrote it, as far as it was there at first or has been read."""
        self.count = 0
        """Events so far."""
        self.taken = False
        """Whether the call is to write what comes."""
        self._tapes = gateway.tapes
        self._call = call
        self._writer = writer
        self._answer_key = answer_key
        self._asks = bool(answer_key)
        self._silence = 0
        self._doubts = 0
        self._gone = False
        rows = self._tapes.read(key)
        self._entries = deque(entry for _, entry in rows)
        self.begin = next((entry for _, entry in reversed(rows) if isinstance(entry, Begin)), None)
        self.begins = bool(rows) and isinstance(rows[0][1], Begin)
        """Whether the tape is there, from its beginning on."""
        batches = [entry for entry in self._entries if isinstance(entry, Batch)]
        self.empty = not batches
        self.noted = any(batch.prompt_tokens for batch in batches)
        """Whether the writer's pod told the tokens of what is there."""
        self.cut = bool(rows) and isinstance(rows[-1][1], End) and rows[-1][1].outcome not in WHOLE
        """Whether the last writer has ended before the answer had. These three as it was at first."""
        self._follower = self._tapes.follow(key, rows[-1][0] if rows else b"")
        self._watch = HangupWatch(call.client, self._hung_up) if call.client is not None else None

    def next(self, begin: Begin, ttl: float, *, errors: bool) -> Batch | End | None:
        """What comes next; None where nobody writes any more, and the call is to go on by itself: then `taken` says
        whether it writes the tape from here on, beginning with `begin`.

        Args:
            errors: whether an error that the writer met is given as the end; else it is a reason to go on.

        Raises:
            ClientGone: the client hung up meanwhile.
            DeadlineExceeded: the call's time is over.
        """
        while True:
            while self._entries:
                entry = self._entries.popleft()
                if isinstance(entry, Begin):
                    self.begin, self._writer = entry, (entry.call, entry.process)
                elif isinstance(entry, Batch):
                    # Where a piece is missing, the call goes on from what it has.
                    return entry if self._counts(entry) else None
                elif entry.outcome in WHOLE or (errors and entry.outcome not in CUT | {UNSHARED}):
                    return entry
                elif entry.outcome == UNSHARED or (not self._entries and self._take(begin, ttl)):
                    return None
            try:
                answer = self._wait()
            except CacheDown:
                return None
            if answer is not None or (self._doubts >= ENOUGH and self._take(begin, ttl)):
                return None if answer is None else End("ok", answer)

    def _counts(self, batch: Batch) -> bool:
        """Counts its events, if it follows what was read before."""
        follows = batch.first == self.count + 1
        self.count += len(batch.events) if follows else 0
        return follows

    def done(self, number: int) -> bool:
        """Whether the tape ended well, and no later than with the event of this number. To be asked before `next`."""
        *others, last = self._entries or [None]
        if not isinstance(last, End) or last.outcome not in WHOLE:
            return False
        batches = [entry for entry in others if isinstance(entry, Batch)]
        return not batches or batches[-1].first + len(batches[-1].events) - 1 <= number

    def _wait(self) -> bytes | None:
        """Waits for more; gives the answer where it lies ready meanwhile."""
        if self._gone:
            raise ClientGone
        if (remaining := self._call.remaining()) <= 0:
            raise self._call.too_late()
        if self._asks and self._silence == 0:
            self._silence = 1  # at first, so that the writer begins a tape
            return self._ask()
        came = self._follower.wait(min(CHECKS[min(self._silence, len(CHECKS) - 1)], remaining))
        if self._follower.lost:
            raise CacheDown
        if came:
            self._entries.extend(came)
            self._doubts = 0
            return None
        self._silence += 1
        return self._ask()

    def _ask(self) -> bytes | None:
        call, process = self._writer or ("", "")
        there, leased, answer = self._tapes.ask(process, call, self._answer_key)
        self._doubts = 0 if there and leased else self._doubts + (1 if there else 2)
        return answer

    def _take(self, begin: Begin, ttl: float) -> bool:
        try:
            self.taken = self._tapes.take(self.key, self._follower.last, begin, ttl)
        except CacheDown:
            return True
        return self.taken

    def _hung_up(self) -> None:
        self._gone = True
        self._follower.wake()

    def close(self) -> None:
        self._follower.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def events_of(batch: Batch) -> Iterator[sse.Event]:
    """A batch as a pod would have sent it: the note about all of it stands before its first event."""
    first: dict[str, int | array[int]] | None = None
    if batch.prompt_tokens:
        counts = {"prompt_tokens": batch.prompt_tokens, "completion_tokens": batch.completion_tokens}
        first = {**counts, "token_ids": batch.tokens}
    for data in batch.events:
        yield sse.Event(data, first)
        first = None
