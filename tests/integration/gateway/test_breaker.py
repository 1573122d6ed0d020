"""Pods in trouble, as clients of a real gateway see them."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.integration.gateway.conftest import RunningGateway, StartGateway, until
from tests.integration.gateway.pod_process import named, pod_process
from tests.integration.gateway.scripts import hello
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}


def ask(gateway: RunningGateway, count: int) -> Counter[str]:
    """Which pods answered so many streams, four at a time."""
    with gateway.client() as client, ThreadPoolExecutor(4) as pool:

        def one(_: int) -> str:
            answer = client.post("/v1/chat/completions", json=CHAT)
            assert answer.status_code == 200, answer.text
            return named(answer.content)

        return Counter(pool.map(one, range(count)))


def opened(gateway: RunningGateway, cause: str) -> float:
    return gateway.metric("forebay_gateway_circuits_opened_total", cause=cause)


def test_a_slow_pod_is_avoided_and_taken_again_when_it_is_well(start_gateway: StartGateway, tmp_path: Path) -> None:
    with pod_process(tmp_path, "quick") as quick, pod_process(tmp_path, "slow", seconds=2) as slow:
        gateway = start_gateway(quick.url, slow.url, breaker_pause=8)
        until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 2)
        until(lambda: ask(gateway, 8) and opened(gateway, "slow") > 0)
        assert ask(gateway, 12) == {"quick": 12}
        slow.answers_after(0)
        until(lambda: ask(gateway, 8)["slow"] >= 2)


def test_a_slow_pod_that_is_the_last_one_serves_on(start_gateway: StartGateway, tmp_path: Path) -> None:
    with pod_process(tmp_path, "slow", seconds=2) as slow:
        with pod_process(tmp_path, "quick") as quick:
            gateway = start_gateway(quick.url, slow.url, breaker_pause=60)
            until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 2)
            until(lambda: ask(gateway, 8) and opened(gateway, "slow") > 0)
            slow.answers_after(0.1)
        assert ask(gateway, 4) == {"slow": 4}


def test_a_pod_that_answers_looks_and_fails_requests_is_left_alone(start_gateway: StartGateway) -> None:
    asked = 0

    def fails(handler: Handler, _: dict[str, Any]) -> None:
        nonlocal asked
        asked += 1
        handler.answer(500, {"error": {"message": "broken", "type": "server_error", "code": "internal_error"}})

    with scripted_pod(fails) as broken, scripted_pod(hello) as good:
        gateway = start_gateway(broken, good, breaker_failures=3, breaker_pause=60)
        until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 2)
        assert ask(gateway, 60) == {"Hello": 60}
        # Up to three more were under way when the third failed.
        assert 3 <= asked <= 6
        assert opened(gateway, "failures") == 1
        until(lambda: gateway.metric("forebay_gateway_circuits_open", model="m") == 1)


def test_refusals_of_a_clients_mistakes_open_nothing(start_gateway: StartGateway) -> None:
    def refuses(handler: Handler, _: dict[str, Any]) -> None:
        handler.answer(400, {"error": {"message": "no", "type": "invalid_request_error", "code": "invalid_request"}})

    with scripted_pod(refuses) as pod:
        gateway = start_gateway(pod, breaker_failures=1)
        with gateway.client() as client:
            assert {client.post("/v1/chat/completions", json=CHAT).status_code for _ in range(10)} == {400}
        assert opened(gateway, "failures") == 0
