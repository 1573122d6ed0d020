"""Pods in trouble, as clients of a real gateway see them."""

from __future__ import annotations

import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.gateway.conftest import RunningGateway, StartGateway, until
from tests.integration.gateway.pod_process import pod_process, text_of
from tests.integration.gateway.scripts import hello
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

UNLIMITED = {"requests_per_minute": 1_000_000, "tokens_per_minute": 1_000_000_000}
CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}


def ask(gateway: RunningGateway, count: int, *, at_once: int = 4) -> Counter[str]:
    """The texts of so many streams, which say what pods answered."""
    with gateway.client() as client, ThreadPoolExecutor(at_once) as pool:

        def one(_: int) -> str:
            answer = client.post("/v1/chat/completions", json=CHAT)
            assert answer.status_code == 200, answer.text
            return text_of(answer.content)

        return Counter(pool.map(one, range(count)))


def opened(gateway: RunningGateway, cause: str) -> float:
    return gateway.metric("forebay_gateway_circuits_opened_total", cause=cause)


def test_a_slow_pod_is_avoided_and_taken_again_when_it_is_well(start_gateway: StartGateway, tmp_path: Path) -> None:
    with pod_process(tmp_path, "quick") as quick, pod_process(tmp_path, "slow", seconds=2) as slow:
        gateway = start_gateway(quick.url, slow.url, breaker_pause=5, **UNLIMITED)
        until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 2)
        until(lambda: ask(gateway, 8) and opened(gateway, "slow") > 0)
        assert ask(gateway, 12) == {"quick!": 12}
        slow.answers_after(0)
        until(lambda: ask(gateway, 8)["slow!"] >= 2)


def test_a_slow_pod_that_is_the_last_one_serves_on(start_gateway: StartGateway, tmp_path: Path) -> None:
    with pod_process(tmp_path, "slow", seconds=2) as slow:
        with pod_process(tmp_path, "quick") as quick:
            gateway = start_gateway(quick.url, slow.url, breaker_pause=60, **UNLIMITED)
            until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 2)
            until(lambda: ask(gateway, 8) and opened(gateway, "slow") > 0)
            slow.answers_after(0.1)
        assert ask(gateway, 4) == {"slow!": 4}


def test_a_pod_that_answers_looks_and_fails_requests_is_left_alone(start_gateway: StartGateway) -> None:
    asked = 0

    def fails(handler: Handler, _: dict[str, Any]) -> None:
        nonlocal asked
        asked += 1
        handler.answer(500, {"error": {"message": "broken", "type": "server_error", "code": "internal_error"}})

    with scripted_pod(fails) as broken, scripted_pod(hello) as good:
        gateway = start_gateway(broken, good, breaker_failures=3, breaker_pause=60, **UNLIMITED)
        until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 2)
        assert ask(gateway, 60) == {"Hello": 60}
        # Up to three more were under way when the third failed.
        assert 3 <= asked <= 6
        assert opened(gateway, "failures") == 1
        until(lambda: gateway.metric("forebay_gateway_circuits_open", model="m") == 1)


@pytest.mark.parametrize(
    ("delay", "stage", "texts"),
    [({"seconds": 60}, "come", {"quick!"}), ({"between": 60}, "begun", {"quick!", "stuck!"})],
    ids=["before its answers", "in mid-stream"],
)
def test_what_runs_in_a_pod_that_hangs_is_taken_elsewhere(
    start_gateway: StartGateway, tmp_path: Path, delay: dict[str, float], stage: str, texts: set[str]
) -> None:
    """A stopped process: its connections stand and its port is open, nothing but silence tells."""
    with pod_process(tmp_path, "quick") as quick, pod_process(tmp_path, "stuck", **delay) as stuck:
        gateway = start_gateway(quick.url, stuck.url)
        until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 2)
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(ask, gateway, 16, at_once=16)
            until(lambda: stuck.seen(stage) >= 4)
            stuck.process.send_signal(signal.SIGSTOP)
            answers = asked.result(timeout=40)
        assert answers.keys() == texts


def test_refusals_of_a_clients_mistakes_open_nothing(start_gateway: StartGateway) -> None:
    def refuses(handler: Handler, _: dict[str, Any]) -> None:
        handler.answer(400, {"error": {"message": "no", "type": "invalid_request_error", "code": "invalid_request"}})

    with scripted_pod(refuses) as pod:
        gateway = start_gateway(pod, breaker_failures=1)
        with gateway.client() as client:
            assert {client.post("/v1/chat/completions", json=CHAT).status_code for _ in range(10)} == {400}
        assert opened(gateway, "failures") == 0
