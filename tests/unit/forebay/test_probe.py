"""What a child's answer, or its silence, means."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from forebay import probe
from forebay.probe import Health


@pytest.mark.parametrize(
    ("status", "body", "health"),
    [
        (200, {"status": "ready", "models": ["a", "b"]}, Health("ready", models=("a", "b"))),
        (200, {"status": "ready"}, Health("ready")),
        (503, {"status": "loading", "phase": "warm-up"}, Health("loading", "warm-up")),
        (503, {"status": "failed", "reason": "no memory"}, Health("failed", "no memory")),
        (503, {"status": "failed"}, Health("failed", "it gave no reason")),
        (500, {"error": {"message": "x"}}, Health("loading")),
        (503, ["odd"], Health("loading")),
    ],
)
def test_the_answer_of_readyz_is_read_as_the_architecture_says(status: int, body: object, health: Health) -> None:
    assert probe.read_readiness(status, json.dumps(body).encode()) == health


def test_an_answer_that_is_no_json_is_not_ready() -> None:
    assert probe.read_readiness(502, b"<html>") == Health("loading")


Answer = Callable[[bytes], int]


@pytest.fixture
def answer() -> Iterator[Answer]:
    """Starts a server that reads once and sends these bytes; returns its port."""
    server = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def start(reply: bytes) -> int:
        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(reply)

        threads.append(threading.Thread(target=serve))
        threads[0].start()
        port: int = server.getsockname()[1]
        return port

    yield start
    for thread in threads:
        thread.join()
    server.close()


def http(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_a_pod_that_is_ready_is_seen_with_its_models(answer: Answer) -> None:
    port = answer(http('{"models": ["m"]}'))
    assert probe.http_ready("127.0.0.1", port)() == Health("ready", models=("m",))


def test_a_gateway_without_pods_is_not_ready_yet(answer: Answer) -> None:
    port = answer(http('{"models": []}'))
    assert probe.http_ready("127.0.0.1", port, needs_models=True)().state == "loading"


def test_what_is_not_http_is_silence(answer: Answer) -> None:
    assert probe.http_ready("127.0.0.1", answer(b"SSH-2.0\r\n"))() == Health("silent")


def test_a_closed_port_is_silence(row_of_ports: int) -> None:
    assert probe.http_ready("127.0.0.1", row_of_ports)() == Health("silent")
    assert probe.cache_ready("127.0.0.1", row_of_ports, "x")() == Health("silent")
    assert not probe.reachable("127.0.0.1", row_of_ports)


def test_a_cache_that_takes_the_password_and_answers_is_ready(answer: Answer) -> None:
    assert probe.cache_ready("127.0.0.1", answer(b"+OK\r\n+PONG\r\n"), "x")() == Health("ready")


def test_a_cache_with_another_password_is_not_ours(answer: Answer) -> None:
    port = answer(b"-WRONGPASS invalid\r\n-NOAUTH needed\r\n")
    assert probe.cache_ready("127.0.0.1", port, "x")().state == "loading"
