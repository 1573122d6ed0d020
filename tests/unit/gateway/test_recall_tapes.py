"""What a call writes on tapes: numbered events for its client, text and tokens for those who follow it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from services.cache.tape import Batch, Begin, End, Writer, read_entry
from services.common import sse
from services.common.errors import QueueFull
from services.common.wire import Answer, Usage
from services.gateway.call import Call, Reply, Spent
from services.gateway.identify import Principal
from services.gateway.observe import observe
from services.gateway.parts import Gateway
from services.gateway.recall.flights import Flights
from services.gateway.recall.playback import events_of
from services.gateway.recall.record import Recording
from tests.integration.gateway.scripts import hello_stream
from tests.unit.gateway.test_recall_exact import call


@dataclass
class Tapes:
    """Where the tapes of a process would be written: each writer is drained when the test says so."""

    process: str = "process"
    writers: list[Writer] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    wanted: Callable[[str], None] = print

    def write(self, writer: Writer) -> None:
        self.writers.append(writer)

    def end(self, writer: Writer, how: End) -> None:
        writer.ended = how
        self.ends.append(how)


@dataclass
class Parts:
    tapes: Tapes


@dataclass
class Tenant:
    cache_salt: str = "salt"


@pytest.fixture
def tapes() -> Tapes:
    return Tapes()


def streamed(asked: Call, spent: Spent) -> Iterator[sse.Event]:
    """A pod's stream as it is relayed."""
    for block in hello_stream(Answer.new("chat", "m")):
        for event in sse.Parser().feed(block):
            if observe(event, asked, spent):
                yield event


def news(writer: Writer) -> list[Any]:
    return [read_entry(fields) for fields in writer.news()]


class TestRecording:
    def made(self, tapes: Tapes, asked: Call, spent: Spent) -> Recording:
        gateway, principal = cast("Gateway", Parts(tapes)), cast("Principal", Tenant())
        return Recording(gateway, principal, asked, spent, name="call", request="digest", ttl=60)

    def frames(self, recording: Recording, asked: Call, spent: Spent) -> Iterator[bytes]:
        reply = Reply(events=streamed(asked, spent))
        recording.attach(reply)
        assert reply.frames is not None
        assert reply.events is not None
        return reply.frames(reply.events, sse.Event.frame)

    @pytest.mark.parametrize("numbered", [True, False])
    def test_what_goes_to_the_client_is_what_stands_on_the_tape(self, tapes: Tapes, *, numbered: bool) -> None:
        asked, spent = call(stream=True), Spent(seed=7)
        object.__setattr__(asked, "resumable", numbered)
        recording = self.made(tapes, asked, spent)
        recording.write()
        frames = self.frames(recording, asked, spent)
        got = [next(frames), next(frames)]
        first = news(tapes.writers[0])
        got += frames
        recording.end("ok", None)
        second = news(tapes.writers[0])
        assert first[0] == Begin("process", asked.id, "m", "digest", 7)
        assert [len(batch.events) for batch in (first[1], second[0])] == [2, 3]
        assert [first[1].first, second[0].first] == [1, 3]
        assert [first[1].tokens, second[0].tokens] == [array("i", [1]), array("i", [2])]
        assert second[-1] == End("ok")
        heads = [f"id: call:{number}\n".encode() if numbered else b"" for number in range(1, 6)]
        data = [*first[1].events, *second[0].events]
        assert got == [head + b"data: " + one + b"\n\n" for head, one in zip(heads, data, strict=True)]

    def test_comments_and_errors_are_not_events_to_come_back_to(self, tapes: Tapes) -> None:
        asked, spent = call(stream=True), Spent()
        object.__setattr__(asked, "resumable", True)
        recording = self.made(tapes, asked, spent)
        recording.write()
        reply = Reply(events=iter([sse.Event(None, comment=b": wait\n\n"), sse.Event(b'{"error":{}}')]))
        recording.attach(reply)
        assert reply.frames is not None
        got = b"".join(reply.frames(reply.events or iter(()), sse.Event.frame))
        assert got == b': wait\n\ndata: {"error":{}}\n\n'
        assert news(tapes.writers[0]) == []

    def test_a_body_stands_at_the_end_and_a_failure_with_its_status(self, tapes: Tapes) -> None:
        asked = call()
        well, ill = self.made(tapes, asked, Spent()), self.made(tapes, asked, Spent())
        for recording in (well, ill):
            recording.write()
        well.attach(Reply(body=b"{}"))
        well.end("ok", None)
        ill.end("overloaded", QueueFull("no room"))
        assert tapes.ends[0] == End("ok", b"{}")
        assert (tapes.ends[1].outcome, tapes.ends[1].status) == ("overloaded", 429)


class TestFlights:
    @pytest.fixture
    def flights(self, tapes: Tapes) -> Flights:
        return Flights(cast("Any", tapes))

    def wanted(self, tapes: Tapes, asked: Call) -> Writer:
        tapes.wanted(asked.id)
        return tapes.writers[-1]

    def followed(self, batches: list[Any]) -> Spent:
        """What a follower knows after it has read these."""
        asked, spent = call(stream=True), Spent()
        for batch in batches:
            if isinstance(batch, Batch):
                for event in events_of(batch):
                    observe(event, asked, spent)
        return spent

    def test_nobody_follows_and_nothing_is_written(self, tapes: Tapes, flights: Flights) -> None:
        asked, spent = call(stream=True), Spent()
        flights.lead(asked, spent, "salt")
        list(streamed(asked, spent))
        flights.end(asked, "ok", None)
        assert tapes.writers == []
        assert tapes.ends == []

    @pytest.mark.parametrize("wanted_after", range(5))
    def test_a_follower_learns_all_whenever_it_asks(self, tapes: Tapes, flights: Flights, wanted_after: int) -> None:
        asked, spent = call(stream=True), Spent()
        flights.lead(asked, spent, "salt")
        read: list[Any] = []
        for number, _ in enumerate(streamed(asked, spent)):
            if number == wanted_after:
                self.wanted(tapes, asked)
            if tapes.writers:
                read += news(tapes.writers[0])
        if not tapes.writers:
            self.wanted(tapes, asked)
        flights.end(asked, "ok", None)
        read += news(tapes.writers[0])
        known = self.followed(read)
        assert "".join(known.text) == "Hello"
        assert list(known.token_ids) == [1, 2]
        assert (known.outcome, known.finish, known.usage) == ("ok", "stop", Usage(5, 2))
        firsts = [batch.first for batch in read if isinstance(batch, Batch)]
        sizes = [len(batch.events) for batch in read if isinstance(batch, Batch)]
        assert firsts == [1 + sum(sizes[:number]) for number in range(len(sizes))]

    def test_who_goes_on_writes_what_comes_after(self, tapes: Tapes, flights: Flights) -> None:
        asked, spent = call(stream=True), Spent()
        flights.lead(asked, spent, "salt")
        writer = self.wanted(tapes, asked)
        events = streamed(asked, spent)
        next(events), next(events)
        read = news(writer)
        heir, known = call(stream=True), self.followed(read)
        flights.write_on(heir, known, "tape", sum(len(one.events) for one in read if isinstance(one, Batch)))
        known.text.append("lo")
        known.token_ids.append(2)
        known.finish, known.usage = "stop", Usage(5, 2)
        flights.end(heir, "ok", None)
        read += news(tapes.writers[-1])
        assert "".join(self.followed(read).text) == "Hello"
        assert list(self.followed(read).token_ids) == [1, 2]

    def test_an_answer_that_holds_more_than_text_is_not_shared(self, tapes: Tapes, flights: Flights) -> None:
        asked, spent = call(stream=True), Spent(text=["Hel"], finish="stop", usage=Usage(5, 2), cacheable=False)
        flights.lead(asked, spent, "salt")
        writer = self.wanted(tapes, asked)
        flights.end(asked, "ok", None)
        assert [type(one) for one in news(writer)] == [Begin, End]
        assert tapes.ends == [End("unshared")]

    def test_a_call_that_is_not_known_is_not_put_on_tape(self, tapes: Tapes, flights: Flights) -> None:
        assert flights
        tapes.wanted("nobody")
        assert tapes.writers == []
