"""While no pod is ready for a model its requests wait, are shown to be alive, and go on; or are told when to come."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from services.gateway.route import read
from tests.integration.gateway.conftest import RunningGateway, StartGateway, until
from tests.integration.gateway.scripts import hello
from tests.integration.gateway.test_faults import raw_request
from tests.unit.gateway.scripted_pod import Script, scripted_pod

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAMED = {**CHAT, "stream": True}
HELD = "forebay_gateway_requests_held"


class Pod:
    """A pod that loads until it is told to be ready, and may begin to load again."""

    def __init__(self, stack: ExitStack, script: Script = hello) -> None:
        self.loaded = threading.Event()
        self.url = stack.enter_context(scripted_pod(script, loaded=self.loaded))


@pytest.fixture
def pod() -> Iterator[Pod]:
    with ExitStack() as stack:
        yield Pod(stack)


@pytest.fixture
def gateway(start_gateway: StartGateway, pod: Pod) -> RunningGateway:
    """In front of the pod, which has been ready before and loads now."""
    pod.loaded.set()
    started = start_gateway(pod.url, hold_timeout=30, hold_max=60)
    load(pod, started)
    return started


def load(pod: Pod, gateway: RunningGateway) -> None:
    pod.loaded.clear()
    until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 0)


def chat(gateway: RunningGateway, body: dict[str, Any] = CHAT) -> httpx2.Response:
    with gateway.client() as client:
        return client.post("/v1/chat/completions", json=body)


def test_all_that_wait_are_answered_once_a_pod_is_ready(gateway: RunningGateway, pod: Pod) -> None:
    with ThreadPoolExecutor(50) as clients:
        held = [clients.submit(chat, gateway, STREAMED if number % 2 else CHAT) for number in range(50)]
        until(lambda: gateway.metric(HELD, model="m") == 50)
        pod.loaded.set()
        answers = [one.result(30) for one in held]
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers[1::2]:
        first, *rest = answer.text.split("\n\n")
        assert first == ": waiting for a pod (loading: pack)"
        assert rest[-2] == "data: [DONE]"
        assert read(answer.headers["x-forebay-route"])["policy"] == "hold"
    assert all("Hello" in answer.text for answer in answers[0::2])
    assert all(float(read(answer.headers["x-forebay-route"])["held"]) > 0 for answer in answers[0::2])
    assert gateway.metric(HELD, model="m") == 0


@pytest.mark.parametrize("body", [CHAT, STREAMED])
def test_a_client_that_hangs_up_leaves_the_queue_at_once(gateway: RunningGateway, body: dict[str, Any]) -> None:
    with raw_request(gateway, body):
        until(lambda: gateway.metric(HELD, model="m") == 1)
    until(lambda: gateway.metric(HELD, model="m") == 0, seconds=3)
    until(lambda: gateway.metric("forebay_gateway_requests_total", model="m", outcome="client_gone") == 1)
    assert "Traceback" not in gateway.log.read_text()


def test_a_client_that_comes_again_when_it_is_told_to_gets_in(start_gateway: StartGateway, pod: Pod) -> None:
    """The load time is measured, so that the next one's end can be foretold."""
    takes = 2.0
    pod.loaded.set()
    gateway = start_gateway(pod.url, hold_timeout=0)
    for _ in range(2):
        load(pod, gateway)
        time.sleep(takes)  # what is measured here is time itself
        pod.loaded.set()
        until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 1)
    ready = threading.Timer(takes, pod.loaded.set)
    ready.start()
    load(pod, gateway)
    refused = chat(gateway)
    assert refused.status_code == 503
    wait = int(refused.headers["retry-after"])
    assert wait <= takes + 1
    time.sleep(wait)
    answer = chat(gateway)
    ready.join()
    assert answer.status_code == 200


def test_with_all_pods_gone_a_stream_waits_in_bounds_and_is_told_when_to_come_again(
    start_gateway: StartGateway,
) -> None:
    with scripted_pod(hello) as pod:
        gateway = start_gateway(pod, hold_timeout=0.5, hold_max=1)
    until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 0)
    with ThreadPoolExecutor(1) as clients:
        held = clients.submit(chat, gateway, STREAMED)
        until(lambda: gateway.metric(HELD, model="m") == 1 or held.done())
        refused = chat(gateway, STREAMED) if not held.done() else None
        answer = held.result(30)
    comment, event = answer.text.strip().split("\n\n")
    assert comment.startswith(": waiting for a pod (")
    error = json.loads(event.removeprefix("data: "))["error"]
    assert error["code"] == "upstream_unavailable"
    assert error["retry_after"] >= 1
    assert refused is not None, "the first one waited"
    assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (503, True)


def test_a_model_that_is_expected_is_known_before_its_first_pod(start_gateway: StartGateway) -> None:
    with scripted_pod(hello) as pod:
        gateway = start_gateway(pod, expected_models="other", hold_timeout=0.1)
        answers = {model: chat(gateway, {**CHAT, "model": model}).status_code for model in ("m", "other", "unknown")}
    assert answers == {"m": 200, "other": 503, "unknown": 404}
