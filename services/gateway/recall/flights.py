"""Identical calls at the same time, computed once across all gateway processes: one leads, the others follow.

Who leads was decided in the exchange of `admit`. A leader pays nothing for it: only when somebody asks is its answer so
far put on a tape, and what comes then, from the text and the tokens that it collects for the response cache anyway. A
follower that finds its leader gone writes the tape on, from the tokens that are there.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.cache.tape import Batch, Begin, End, Writer, tape_key
from services.cache.tapes import Tapes
from services.common import sse
from services.common.errors import ApiError, ShuttingDown
from services.common.wire import Answer
from services.gateway.call import Call, Spent
from services.gateway.recall.exact import whole_answer
from services.gateway.recall.playback import UNSHARED, WHOLE

TTL = 60.0
"""Seconds that the tape of a flight is kept after its end, for followers that are late; then there is the cache."""


@dataclass(eq=False)
class Lead:
    """A call that others may follow, and what of it is on the tape."""

    call: Call
    spent: Spent
    key: str
    writer: Writer | None = None
    events: int = 0
    pieces: int = 0
    tokens: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        self._answer = Answer.new(self.call.kind, self.call.model)

    def drain(self) -> Batch | None:
        """What is new: the text since the last time as one chunk, at the end also what closes the stream."""
        spent = self.spent
        if not spent.cacheable:
            return None
        text = "".join(spent.text[self.pieces :])
        tokens = spent.token_ids[self.tokens :]
        made = []
        if text:
            made = [self._answer.first()] if self.events == 0 else []
            made.append(self._answer.delta(text))
        if self.ended and spent.finish is not None and spent.usage is not None:
            made += [self._answer.last(spent.finish), self._answer.usage(spent.usage)]
        if not made:
            return None
        events = [sse.dump(chunk) for chunk in made if chunk is not None]
        if self.ended:
            events.append(b"[DONE]")
        batch = Batch(self.events + 1, tuple(events), tokens, spent.prompt_tokens, spent.completion_tokens)
        self.pieces, self.tokens = len(spent.text), self.tokens + len(tokens)
        self.events += len(events)
        return batch


class Flights:
    """The calls of this process that others may follow."""

    def __init__(self, tapes: Tapes) -> None:
        self._tapes = tapes
        self._leads: dict[str, Lead] = {}
        tapes.wanted = self._put_on_tape

    def lead(self, call: Call, spent: Spent, salt: str) -> None:
        """Others may follow `call`; `salt` is what the answers of those are kept under."""
        self._leads[call.id] = Lead(call, spent, flight_tape(salt, call.id))

    def write_on(self, call: Call, spent: Spent, key: str, events: int) -> None:
        """`call` goes on with the tape `key`, on which there are so many events, and all that it has so far."""
        lead = Lead(call, spent, key, None, events, len(spent.text), len(spent.token_ids))
        self._leads[call.id] = lead
        self._write(lead, begun=True)

    def end(self, call: Call, outcome: str, error: BaseException | None) -> None:
        """Ends what followers of `call` get."""
        lead = self._leads.pop(call.id, None)
        if lead is None or lead.writer is None:
            return
        if isinstance(error, ShuttingDown):
            how = End("error")  # that is this process' trouble, not the answer's
        elif isinstance(error, ApiError):
            how = End.failed(outcome, error)
        elif outcome not in WHOLE:
            how = End(outcome)
        elif whole_answer(call, lead.spent) is None:
            how = End(UNSHARED)
        else:
            lead.ended = lead.spent.answer is None
            how = End("ok", lead.spent.answer or b"")
        self._tapes.end(lead.writer, how)

    def _put_on_tape(self, call: str) -> None:
        lead = self._leads.get(call)
        if lead is not None and lead.writer is None:
            self._write(lead, begun=False)

    def _write(self, lead: Lead, *, begun: bool) -> None:
        begin = Begin(self._tapes.process, lead.call.id, lead.call.model)
        lead.writer = Writer(lead.key, lead.call.timeout + TTL, lead.drain, None if begun else lambda: begin)
        self._tapes.write(lead.writer)


def flight_tape(salt: str, call: str) -> str:
    """Where the flight that `call` began lies."""
    return tape_key(salt, f"flight {call}")
