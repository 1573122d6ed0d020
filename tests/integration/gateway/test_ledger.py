"""The ledger of real gateways, while Redis, SQL and gateways are killed: each call once, with its true counts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis
from sqlalchemy import select

from services.cache.ledger import STREAM
from services.common.telemetry import CALL_HEADER
from services.common.wire import Answer, Usage
from services.gateway.ledger import Books, open_books
from services.gateway.ledger.table import ledger
from tests.integration.gateway.conftest import RunningGateway, StartGateway, run_gateway, until
from tests.integration.gateway.scripts import kind_of, noted
from tests.postgres import Postgres, run_postgres, server_programs
from tests.unit.gateway.scripted_pod import Handler, scripted_pod
from tests.valkey import Valkey, run_valkey

USAGE = Usage(5, 2, 1, 0.25, 3.0)
PRICES = json.dumps({"m": {"input": 1, "cached_input": 0, "output": 10}})


class Knowing:
    """A pod that answers with two tokens, holds streams until it may go on, and knows what its calls have cost."""

    def __init__(self) -> None:
        self.held = False
        self.calls: dict[str, bool] = {}
        """Whether each still runs, by the gateways' id."""
        self.go_on = threading.Event()

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        if handler.path == "/internal/calls":
            known = [self.describe(one) for one in body["ids"] if one in self.calls]
            handler.answer(200, {"calls": known})
            return
        call = handler.headers[CALL_HEADER]
        self.calls[call] = True
        try:
            self.answer(handler, body)
        finally:
            self.calls[call] = False

    def answer(self, handler: Handler, body: dict[str, Any]) -> None:
        answer = Answer.new(kind_of(body), body["model"])
        if not body.get("stream"):
            handler.answer(200, answer.whole([("Hello", "stop")], USAGE))
        else:
            handler.start_stream()
            handler.send_piece(noted(1, [1], answer.delta("Hel")))
            if self.held:
                self.go_on.wait(60)
            handler.send_piece(noted(2, [2], answer.delta("lo")))
            handler.send_piece(noted(2, [], answer.last("stop")))
            handler.send_piece(noted(2, [], answer.usage(USAGE)) + b"data: [DONE]\n\n")
            handler.end_stream()

    def describe(self, call: str) -> dict[str, Any]:
        running = self.calls[call]
        return {"id": call, "running": running, "outcome": None if running else "stop", "usage": USAGE.body()}


def body(number: int, *, stream: bool = False) -> dict[str, Any]:
    """No two calls alike, so that none has another's answer."""
    messages = [{"role": "user", "content": f"Hi {number}"}]
    return {"model": "m", "messages": messages, "max_tokens": 5, "stream": stream, "temperature": 0}


def call(client: httpx2.Client, *numbers: int, stream: bool = False) -> None:
    for number in numbers:
        headers = {"X-Request-Id": f"r{number:04}"}
        answer = client.post("/v1/chat/completions", json=body(number, stream=stream), headers=headers)
        assert answer.status_code == 200, answer.text


@contextmanager
def opened(url: str) -> Iterator[Books]:
    books = open_books(url)
    try:
        yield books
    finally:
        books.close()


def requests_in(books: Books) -> list[str]:
    """The request ids of all rows: one that is there twice was charged twice."""
    return [row["request_id"] for row in books.rows(select(ledger.c.request_id).order_by(ledger.c.request_id))]


def ids(*numbers: int) -> list[str]:
    return [f"r{number:04}" for number in numbers]


@pytest.fixture(scope="module")
def cache() -> Iterator[Valkey]:
    with run_valkey() as server:
        yield server


@pytest.fixture
def redis(cache: Valkey) -> Iterator[Redis]:
    cache.start()
    with cache.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def pod() -> Iterator[tuple[Knowing, str]]:
    knowing = Knowing()
    with scripted_pod(knowing) as url:
        yield knowing, url
        knowing.go_on.set()


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    """The ledger of the gateways that `start_gateway` starts."""
    with opened(f"sqlite:///{tmp_path / 'forebay.db'}") as books:
        yield books


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if server_programs() is None:
        pytest.skip("not installed: postgresql")
    with run_postgres() as server:
        yield server


def test_a_call_is_a_row_with_all_that_it_was(
    start_gateway: StartGateway, redis: Redis, cache: Valkey, pod: tuple[Knowing, str], books: Books
) -> None:
    gateway = start_gateway(pod[1], redis_url=cache.url, prices=PRICES)
    before = time.time()
    with gateway.client() as client:
        call(client, 1)
        until(lambda: requests_in(books) == ids(1))
        call(client, 1)
        call(client, 2, stream=True)
    until(lambda: len(requests_in(books)) == 3)
    computed, cached, streamed = books.rows(select(ledger).order_by(ledger.c.started_ms))
    assert computed["outcome"] == "ok"
    assert (computed["tenant"], computed["model"], computed["kind"]) == ("demo", "m", "chat")
    assert computed["subject"].startswith("key:")
    counts = ("prompt_tokens", "cached_tokens", "completion_tokens", "compute_seconds", "energy_joules", "cost_micros")
    assert [computed[name] for name in counts] == [5, 1, 2, 0.25, 3.0, 4 + 20]
    assert before - 1 < computed["started_ms"] / 1000 < time.time() + 1
    assert computed["upstream"] == pod[1]
    assert "replica=" in computed["route"]
    assert (cached["outcome"], cached["cache"], cached["cost_micros"], cached["saved_micros"]) == (
        "cached",
        "hit",
        0,
        24,
    )
    assert (streamed["completion_tokens"], streamed["compute_seconds"]) == (2, 0.25)
    assert streamed["ttft_ms"] is not None


def test_hits_are_in_the_ledger_once_each_when_their_gateway_is_killed(
    start_gateway: StartGateway, redis: Redis, cache: Valkey, pod: tuple[Knowing, str], books: Books
) -> None:
    gateway, answered = start_gateway(pod[1], redis_url=cache.url, prices=PRICES), 0
    with gateway.client() as client:
        call(client, 1)
        until(lambda: requests_in(books) == ids(1))
        for _ in range(100):
            answer = client.post("/v1/chat/completions", json=body(1), headers={"X-Request-Id": "hit"})
            answered += answer.headers["x-forebay-cache"] == "hit"
        gateway.kill()
    start_gateway(pod[1], redis_url=cache.url, prices=PRICES)  # enters what the first has left
    hits = select(ledger).where(ledger.c.request_id == "hit")
    until(lambda: len(books.rows(hits)) >= 100)
    rows = books.rows(hits)
    assert answered == 100
    assert len(rows) == 100
    assert {(row["outcome"], row["cache"], row["cost_micros"], row["saved_micros"]) for row in rows} == {
        ("cached", "hit", 0, 24)
    }


def test_calls_while_redis_is_gone_come_to_sql_all_the_same(
    start_gateway: StartGateway, redis: Redis, cache: Valkey, pod: tuple[Knowing, str], books: Books
) -> None:
    gateway = start_gateway(pod[1], redis_url=cache.url)
    with gateway.client() as client:
        call(client, 1)
        until(lambda: requests_in(books) == ids(1))
        cache.kill()
        call(client, 2, 3)
        until(lambda: requests_in(books) == ids(1, 2, 3))
        cache.start()
        call(client, 4)
        until(lambda: requests_in(books) == ids(1, 2, 3, 4))
    assert gateway.metric("forebay_gateway_ledger_spooled_total") >= 2


def test_redis_dies_in_the_middle_of_calls_and_each_is_a_row(
    start_gateway: StartGateway, redis: Redis, cache: Valkey, pod: tuple[Knowing, str], books: Books
) -> None:
    """Admitted with Redis, settled without it; their leases are found when it is back."""
    knowing, url = pod
    knowing.held = True
    gateway = start_gateway(url, redis_url=cache.url)
    with gateway.client() as client, ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(call, client, number, stream=True) for number in range(8)]
        until(lambda: len(knowing.calls) == 8)
        cache.kill()
        knowing.go_on.set()
        for one in calls:
            one.result()
        until(lambda: requests_in(books) == ids(*range(8)))
        cache.start()
        call(client, 8)
        until(lambda: requests_in(books) == ids(*range(9)))


def test_while_sql_is_gone_calls_go_on_and_follow(
    tmp_path: Path, redis: Redis, cache: Valkey, pod: tuple[Knowing, str], postgres: Postgres
) -> None:
    url = postgres.new_database()
    with (
        run_gateway(
            tmp_path, [pod[1]], {"redis_url": cache.url, "database_url": url, "database_timeout": 1}
        ) as gateway,
        gateway.client() as client,
        opened(url) as books,
    ):
        call(client, 1)
        until(lambda: requests_in(books) == ids(1))
        postgres.freeze()
        try:
            call(client, 2, 3)
            until(lambda: redis.xlen(STREAM) == 2)
        finally:
            postgres.thaw()
        until(lambda: requests_in(books) == ids(1, 2, 3))
        call(client, 4)
        until(lambda: requests_in(books) == ids(1, 2, 3, 4))


def test_redis_is_killed_while_calls_wait_for_sql_and_keeps_them(
    tmp_path: Path, redis: Redis, cache: Valkey, pod: tuple[Knowing, str], postgres: Postgres
) -> None:
    url = postgres.new_database()
    settings = {"redis_url": cache.url, "database_url": url, "database_timeout": 1}
    with run_gateway(tmp_path, [pod[1]], settings) as gateway, gateway.client() as client, opened(url) as books:
        call(client, 1)
        until(lambda: requests_in(books) == ids(1))
        postgres.freeze()
        try:
            call(client, 2, 3)
            until(lambda: redis.xlen(STREAM) == 2)
            cache.kill()
            call(client, 4)
            cache.start()
            assert redis.xlen(STREAM) == 2
        finally:
            postgres.thaw()
        until(lambda: requests_in(books) == ids(1, 2, 3, 4))


def test_a_gateway_that_ends_writes_what_it_has(
    tmp_path: Path, redis: Redis, cache: Valkey, pod: tuple[Knowing, str], books: Books
) -> None:
    with run_gateway(tmp_path, [pod[1]], {"redis_url": cache.url}) as gateway, gateway.client() as client:
        call(client, *range(20))
        gateway.process.terminate()
        gateway.process.wait(20)
        assert requests_in(books) == ids(*range(20))
        assert redis.xinfo_consumers(STREAM, "sql") == []


def streaming(gateway: RunningGateway, knowing: Knowing, count: int) -> ThreadPoolExecutor:
    """So many streams that run, and end with their gateway."""
    threads = ThreadPoolExecutor(count)

    def run(number: int) -> None:
        with gateway.client() as client:
            try:
                client.post(
                    "/v1/chat/completions", json=body(number, stream=True), headers={"X-Request-Id": f"r{number:04}"}
                )
            except httpx2.HTTPError:
                return  # its gateway was killed

    for number in range(count):
        threads.submit(run, number)
    until(lambda: len(knowing.calls) == count)
    return threads


def shared(tmp_path: Path, cache: Valkey) -> Callable[[str, str], Any]:
    """Starts gateways that share Redis and SQL."""
    url = f"sqlite:///{tmp_path / 'forebay.db'}"
    homes: list[Path] = []

    def start(name: str, pod: str) -> Any:
        home = tmp_path / name
        home.mkdir()
        if homes:  # another key would take the place of the first one's
            shutil.copy(homes[0] / "demo.key", home)
        homes.append(home)
        return run_gateway(home, [pod], {"redis_url": cache.url, "database_url": url})

    return start


def test_what_a_killed_gateway_left_is_settled_once_by_those_that_live(
    tmp_path: Path, redis: Redis, cache: Valkey, pod: tuple[Knowing, str], books: Books
) -> None:
    knowing, url = pod
    knowing.held = True
    start = shared(tmp_path, cache)
    with start("one", url) as one, start("two", url) as two, start("three", url) as three:
        streams = streaming(one, knowing, 10)
        one.kill()
        knowing.go_on.set()
        until(lambda: requests_in(books) == ids(*range(10)))
        rows = books.rows(select(ledger))
        assert {(row["outcome"], row["completion_tokens"], row["compute_seconds"]) for row in rows} == {
            ("orphaned", USAGE.completion_tokens, USAGE.compute_seconds)
        }
        until(lambda: not redis.keys("forebay:leases:*"))
        until(lambda: sum(gateway.metric("forebay_gateway_orphans_settled_total") for gateway in (two, three)) == 10)
        until(lambda: redis.scard("forebay:processes") == 2)
        assert "the reaper failed" not in two.log.read_text() + three.log.read_text()
        streams.shutdown()


def test_a_call_that_no_pod_knows_is_settled_and_marked(
    tmp_path: Path, redis: Redis, cache: Valkey, pod: tuple[Knowing, str], books: Books
) -> None:
    knowing, url = pod
    knowing.held = True
    start = shared(tmp_path, cache)
    with start("one", url) as one:
        streams = streaming(one, knowing, 2)
        one.kill()
    knowing.calls.clear()
    with start("two", url):
        until(lambda: requests_in(books) == ids(0, 1))
    assert {(row["outcome"], row["completion_tokens"]) for row in books.rows(select(ledger))} == {("gateway_lost", 0)}
    knowing.go_on.set()
    streams.shutdown()


def test_a_gateway_that_was_only_slow_settles_its_calls_itself(
    tmp_path: Path, redis: Redis, cache: Valkey, pod: tuple[Knowing, str], books: Books
) -> None:
    knowing, url = pod
    knowing.held = True
    start = shared(tmp_path, cache)
    with start("one", url) as slow, start("two", url) as other:
        streams = streaming(slow, knowing, 3)
        workers = Path(f"/proc/{slow.process.pid}/task/{slow.process.pid}/children").read_text().split()
        [process] = {key.decode().rpartition(":")[2] for key in redis.keys("forebay:leases:*")}
        for worker in workers:
            os.kill(int(worker), signal.SIGSTOP)
        until(lambda: redis.exists(f"forebay:alive:{process}") == 0)
        until(lambda: "forebay:role:reaper" in {key.decode() for key in redis.keys("forebay:role:*")})
        for worker in workers:
            os.kill(int(worker), signal.SIGCONT)
        knowing.go_on.set()
        until(lambda: requests_in(books) == ids(0, 1, 2))
        streams.shutdown()
        assert {row["outcome"] for row in books.rows(select(ledger))} == {"ok"}
        assert other.metric("forebay_gateway_orphans_settled_total") == 0
