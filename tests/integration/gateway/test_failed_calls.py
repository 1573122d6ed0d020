"""A call that failed says where it went and why, to its client, and to the operator who asks with `forebay explain`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from forebay.cli import main
from services.common.errors import DeadlineExceeded
from services.common.wire import Answer
from services.gateway.route import read
from tests.integration.gateway.conftest import RunningGateway, StartGateway, until
from tests.integration.gateway.scripts import break_before_answer, break_in_stream, hello, hello_stream, refuse
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ID = "the-request"


def chat(gateway: RunningGateway, **fields: Any) -> httpx2.Response:
    with gateway.client() as client:
        return client.post("/v1/chat/completions", json={**CHAT, **fields}, headers={"X-Request-Id": ID})


def route(answer: httpx2.Response) -> dict[str, str]:
    return read(answer.headers["x-forebay-route"])


def last_event(answer: httpx2.Response) -> dict[str, Any]:
    """The error that a stream ends with."""
    *_, last = answer.text.strip().split("\n\n")
    error: dict[str, Any] = json.loads(last.removeprefix("data: "))["error"]
    return error


def explained(gateway: RunningGateway, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of the request, once the ledger has it."""
    log_in = {"username": "admin", "password": gateway.admin_password}
    token = httpx2.post(f"{gateway.url}/login", json=log_in).json()["access_token"]
    until(lambda: main(["explain", ID, "--url", gateway.url, "--key", token]) == 0)
    return capsys.readouterr().out


@pytest.fixture
def start_unready(start_gateway: StartGateway) -> Iterator[StartGateway]:
    """Starts a gateway whose only pod loads its model again."""
    loaded = threading.Event()
    loaded.set()
    with scripted_pod(hello, loaded=loaded) as pod:

        def start(**settings: Any) -> RunningGateway:
            gateway = start_gateway(pod, **settings)
            loaded.clear()
            until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 0)
            return gateway

        yield start


def test_every_pod_that_was_tried_and_was_full(start_gateway: StartGateway, capsys: pytest.CaptureFixture[str]) -> None:
    full = refuse(429, "queue_full")
    with scripted_pod(full) as one, scripted_pod(full) as other:
        gateway = start_gateway(one, other)
        until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 2)
        answer = chat(gateway)
        pods = {url.removeprefix("http://") for url in (one, other)}
        assert answer.status_code == 429
        found = route(answer)
        assert found.pop("replica") in pods
        assert found.pop("policy") in {"only", "least-loaded"}
        assert found == {"model": "m", "cache": "bypass", "retries": "1"}
        told = explained(gateway, capsys)
    assert "retries  sent to another pod once" in told
    assert "every pod that was asked was full" in told


def test_a_pod_that_was_lost(start_gateway: StartGateway, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_pod(break_before_answer) as pod:
        gateway = start_gateway(pod)
        answer = chat(gateway)
        assert answer.status_code == 503
        assert route(answer)["replica"] == pod.removeprefix("http://")
        told = explained(gateway, capsys)
    assert f"replica  {pod.removeprefix('http://')} (only: " in told
    assert "outcome  upstream_error after " in told


def test_a_pod_that_refused(start_gateway: StartGateway, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_pod(refuse(400, "context_length_exceeded")) as pod:
        gateway = start_gateway(pod)
        answer = chat(gateway)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert route(answer)["replica"] == pod.removeprefix("http://")
        assert "the request was refused for what it says" in explained(gateway, capsys)


@pytest.mark.parametrize("stream", [False, True])
def test_a_pod_that_nobody_waits_for(start_unready: StartGateway, stream: bool) -> None:
    answer = chat(start_unready(), stream=stream)
    assert answer.status_code == 503
    assert route(answer) == {"model": "m", "phase": "loading: pack", "cache": "bypass", "retries": "0"}


def test_a_wait_in_vain(start_unready: StartGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway = start_unready(hold_timeout=0.2)
    answer = chat(gateway)
    assert answer.status_code == 503
    found = route(answer)
    assert float(found.pop("held")) >= 0.2
    assert found == {"model": "m", "policy": "hold", "phase": "loading: pack", "cache": "bypass", "retries": "0"}
    told = explained(gateway, capsys)
    assert "phase    loading: pack: why no pod took it at last" in told
    assert "replica  none (hold: " in told


def test_a_stream_that_waits_in_vain(start_unready: StartGateway) -> None:
    """Its header is from when it began to wait, its last event from when it had waited."""
    answer = chat(start_unready(hold_timeout=0.2), stream=True)
    assert answer.status_code == 200
    assert route(answer)["phase"] == "loading: pack"
    assert "held" not in route(answer)
    assert float(read(last_event(answer)["route"])["held"]) >= 0.2


def test_a_circuit_that_is_open(start_gateway: StartGateway, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_pod(refuse(500, "internal_error")) as pod:
        gateway = start_gateway(pod, breaker_failures=1, breaker_pause=60)
        assert route(chat(gateway))["replica"] == pod.removeprefix("http://")
        answer = chat(gateway)
        assert answer.status_code == 503
        assert route(answer)["phase"] == "circuit open"
        assert "phase    circuit open" in explained(gateway, capsys)


def test_a_stream_whose_pod_was_lost(start_gateway: StartGateway, capsys: pytest.CaptureFixture[str]) -> None:
    """The header is long gone: the event that ends the stream says where it was last."""
    with scripted_pod(break_in_stream) as one, scripted_pod(break_in_stream) as other:
        gateway = start_gateway(one, other)
        until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 2)
        answer = chat(gateway, stream=True)
        error = last_event(answer)
        assert error["code"] == "upstream_unavailable"
        before, after = route(answer), read(error["route"])
        assert {before["replica"], after["replica"]} == {url.removeprefix("http://") for url in (one, other)}
        assert after["retries"] == "1"
        assert "no pod could answer" in explained(gateway, capsys)


def test_a_stream_that_its_pod_ends_by_an_error(start_gateway: StartGateway) -> None:
    """The pod's own words stay as they are."""
    envelope = DeadlineExceeded("too long").envelope()

    def too_slow(handler: Handler, body: dict[str, Any]) -> None:
        handler.start_stream()
        for piece in hello_stream(Answer.new("chat", body["model"]))[:2]:
            handler.send_piece(piece)
        handler.send_piece(b"data: " + json.dumps(envelope).encode() + b"\n\n")
        handler.end_stream()

    with scripted_pod(too_slow) as pod:
        error = last_event(chat(start_gateway(pod), stream=True))
    assert read(error.pop("route"))["replica"] == pod.removeprefix("http://")
    assert error == envelope["error"]


def test_a_call_that_limits_refused_has_no_route_and_the_command_says_so(
    start_gateway: StartGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted_pod(hello) as pod:
        gateway = start_gateway(pod, requests_per_minute=1)
        assert "x-forebay-route" in chat(gateway).headers
        with gateway.client() as client:
            answer = client.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "refused"})
            assert answer.status_code == 429
            assert "x-forebay-route" not in answer.headers
        explained(gateway, capsys)  # the ledger has what was admitted
        log_in = {"username": "admin", "password": gateway.admin_password}
        token = httpx2.post(f"{gateway.url}/login", json=log_in).json()["access_token"]
        assert main(["explain", "refused", "--url", gateway.url, "--key", token]) == 1
    assert "is in the log alone" in capsys.readouterr().err
