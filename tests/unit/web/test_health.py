"""The health check of the images."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from services.web.health import main


class Half(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Half) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("A_PORT", str(server.server_port))
        yield server.server_port
        server.shutdown()


def test_what_answers_200_is_healthy(port: int) -> None:
    assert main(["A_PORT", "/healthz"]) == 0


def test_what_answers_otherwise_is_not(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["A_PORT", "/readyz"]) == 1
    assert capsys.readouterr().err == "/readyz answers 503.\n"


def test_nor_is_what_does_not_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("A_PORT", "1")
    assert main(["A_PORT", "/healthz"]) == 1
    assert "port 1" in capsys.readouterr().err
