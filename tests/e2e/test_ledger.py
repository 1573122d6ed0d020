"""The ledger against the engine's own counts: real gateways, a real pod with a tiny model, and what is killed of them.

The pod's metrics are the truth: they count tokens and seconds in the engine's loop, whoever asked for them.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select

from services.gateway.ledger import Books, open_books
from services.gateway.ledger.table import ledger
from tests.integration.gateway.conftest import RunningGateway, run_gateway, until
from tests.integration.inference.pod import ALONE, Pod, running_pod
from tests.unit.inference.tiny import byte_tokenizer, save_tiny
from tests.valkey import Valkey, run_valkey

MODEL = "tiny"
SLOW = (*ALONE, "tests.e2e.slow_pod:create_app()")
LETTER = byte_tokenizer().convert_tokens_to_ids("a")
"""The one token that answers are made of: each is a chunk of a letter, so that a client can count them."""


@pytest.fixture(scope="module")
def cache() -> Iterator[Valkey]:
    with run_valkey() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, cache: Valkey) -> Path:
    with cache.client() as redis:
        redis.flushall()
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / MODEL, "llama")


@pytest.fixture
def books(folder: Path) -> Iterator[Books]:
    opened = open_books(f"sqlite:///{folder / 'forebay.db'}")
    yield opened
    opened.close()


@contextmanager
def slow_pod(folder: Path, tiny: Path) -> Iterator[Pod]:
    settings = {
        "model": f"{MODEL}={tiny}",
        "kv_blocks": 1024,
        "max_batch": 128,
        "step_tokens": 4096,
        "chunk_tokens": 4096,
    }
    with running_pod(folder, folder, command=SLOW, **settings) as pod:
        yield pod


@contextmanager
def gateway(folder: Path, cache: Valkey, name: str, *pods: Pod) -> Iterator[RunningGateway]:
    home = folder / name
    home.mkdir()
    if (key := folder / "demo.key").exists():  # another key would take the place of the first one's
        shutil.copy(key, home)
    settings = {
        "redis_url": cache.url,
        "database_url": f"sqlite:///{folder / 'forebay.db'}",
        "requests_per_minute": 100_000,
        "tokens_per_minute": 100_000_000,
    }
    with run_gateway(home, [f"http://127.0.0.1:{pod.port}" for pod in pods], settings) as running:
        shutil.copy(home / "demo.key", folder)
        yield running


def open_stream(gateway: RunningGateway, request_id: str, tokens: int) -> http.client.HTTPConnection:
    """A stream of so many letters, each a token, that has been asked for."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": request_id}],
        "max_tokens": tokens,
        "temperature": 0,
        "logit_bias": {LETTER: 100},
        "stream": True,
    }
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=60)
    headers = {"Authorization": f"Bearer {gateway.key}", "X-Request-Id": request_id}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return connection


def read(connection: http.client.HTTPConnection, most: int) -> tuple[int, bool]:
    """Reads up to so many letters and hangs up; how many came, and whether the stream had come to its end."""
    with closing(connection), connection.getresponse() as response:
        assert response.status == 200, response.read()
        letters = 0
        while letters < most:
            line = response.readline()
            if not line:
                return letters, False
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                letters += sum(len(choice["delta"].get("content") or "") for choice in chunk.get("choices", ()))
            elif line.startswith(b"data: [DONE]"):
                return letters, True
        return letters, False


def rows(books: Books) -> list[dict[str, Any]]:
    return books.rows(select(ledger).order_by(ledger.c.request_id))


def written(books: Books) -> int:
    return int(books.rows(select(func.count().label("n")).select_from(ledger))[0]["n"])


def assert_equals_what_was_generated(books: Books, pod: Pod) -> None:
    """Tokens, and the time and number of steps: what the ledger has is what the engine's loop counted."""
    found = rows(books)
    assert len({row["id"] for row in found}) == pod.metric("forebay_engine_requests_total")
    assert sum(row["completion_tokens"] for row in found) == pod.metric("forebay_engine_generated_tokens_total")
    seconds = pod.metric("forebay_engine_compute_seconds_total")
    assert sum(row["compute_seconds"] for row in found) == pytest.approx(seconds, abs=1e-5 * len(found))
    assert seconds > 0


def test_a_client_that_hangs_up_pays_for_what_it_got_and_one_step_at_most(
    folder: Path, cache: Valkey, tiny: Path, books: Books
) -> None:
    wanted = {f"hang-up-{number:03}": random.randrange(1, 16) for number in range(200)}

    def hang_up(request_id: str) -> None:
        connection = open_stream(one, request_id, 64)
        assert read(connection, wanted[request_id]) == (wanted[request_id], False)

    with slow_pod(folder, tiny) as pod, gateway(folder, cache, "one", pod) as one:
        with ThreadPoolExecutor(100) as clients:
            list(clients.map(hang_up, wanted))
        until(lambda: written(books) == len(wanted))
        more = {row["request_id"]: row["completion_tokens"] - wanted[row["request_id"]] for row in rows(books)}
        assert {row["outcome"] for row in rows(books)} == {"client_gone"}
        assert {count for count in more.values() if not 0 <= count <= 1} == set()
        assert_equals_what_was_generated(books, pod)
        with cache.client() as redis:
            assert redis.keys("forebay:leases:*") == []


def test_after_the_kill_of_a_gateway_under_load_the_ledger_is_what_was_generated(
    folder: Path, cache: Valkey, tiny: Path, books: Books
) -> None:
    count, tokens = 60, 12

    with (
        slow_pod(folder, tiny) as pod,
        gateway(folder, cache, "one", pod) as one,
        gateway(folder, cache, "two", pod) as two,
    ):

        def stream(number: int) -> bool:
            connection = open_stream(one if number % 2 else two, f"call-{number:03}", tokens)
            try:
                return read(connection, tokens + 1) == (tokens, True)
            except (http.client.HTTPException, OSError):
                return False

        with ThreadPoolExecutor(count) as clients:
            streams = [clients.submit(stream, number) for number in range(count)]
            until(lambda: pod.metric("forebay_engine_generated_tokens_total") > 3 * count)
            one.kill()
            whole = [one.result() for one in streams]
        assert whole == [number % 2 == 0 for number in range(count)]
        until(lambda: written(books) == count)
        outcomes = [row["outcome"] for row in rows(books)]
        assert outcomes == ["ok", "orphaned"] * (count // 2)
        assert_equals_what_was_generated(books, pod)
        with cache.client() as redis:
            until(lambda: not redis.keys("forebay:leases:*"))
            assert not redis.keys("forebay:running:*")


def test_streams_that_outlive_their_pod_are_counted_once(folder: Path, cache: Valkey, tiny: Path, books: Books) -> None:
    count, tokens = 20, 12
    lost, kept = folder / "lost", folder / "kept"
    lost.mkdir()
    kept.mkdir()
    with (
        slow_pod(lost, tiny) as first,
        slow_pod(kept, tiny) as second,
        gateway(folder, cache, "one", first, second) as one,
    ):
        with ThreadPoolExecutor(count) as clients:
            streams = [
                clients.submit(lambda n: read(open_stream(one, f"call-{n:03}", tokens), tokens + 1), number)
                for number in range(count)
            ]
            until(lambda: first.metric("forebay_engine_generated_tokens_total") > count)
            workers = Path(f"/proc/{first.process.pid}/task/{first.process.pid}/children").read_text().split()
            for process in (first.process.pid, *map(int, workers)):
                os.kill(process, signal.SIGKILL)
            assert [one.result() for one in streams] == [(tokens, True)] * count
        until(lambda: written(books) == count)
        assert {(row["outcome"], row["completion_tokens"]) for row in rows(books)} == {("ok", tokens)}
        assert any(row["resumes"] for row in rows(books))
