"""What `helm test` runs: passes on a gateway that does right, and says what is wrong with one that does not."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.chart.rendering import CHART

pytestmark = pytest.mark.without_helm

SCRIPT = CHART / "files" / "smoke_test.py"
GOOD_KEY = "fb-bbbbbbbb-" + "B" * 43
CHUNK = {"choices": [{"delta": {"content": "Hello"}}]}


class Gateway(ThreadingHTTPServer):
    """Answers as the gateway does, except for one fault."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = ""
        self.listings = 0


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        self.server.listings += 1
        loading = self.server.fault == "loading" and self.server.listings < 2
        models = [] if loading or self.server.fault == "no model" else ["one", "two"]
        self._answer(200, json.dumps({"data": [{"id": model} for model in models]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.server.fault
        if self.headers["Authorization"] != f"Bearer {GOOD_KEY}" and fault != "any key":
            self._answer(401, "{}")
        elif fault == "refuses two" and body["model"] == "two":
            self._answer(503, '{"error": {"message": "no pod"}}')
        elif body["stream"]:
            end = "" if fault == "cut" else "data: [DONE]\n\n"
            self._answer(200, f"data: {json.dumps(CHUNK)}\n\n{end}")
        else:
            self._answer(200, json.dumps(answer("" if fault == "empty" else "Hello")))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


def answer(content: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content}}], "usage": {"completion_tokens": 1}}


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    server = Gateway()
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(gateway: Gateway, tmp_path: Path, wait: float = 20) -> tuple[int, str]:
    return run_against(gateway.server_port, tmp_path, wait)


def run_against(port: int, tmp_path: Path, wait: float) -> tuple[int, str]:
    (tmp_path / "key").write_text(f"{GOOD_KEY}\n")
    options = [f"--url=http://127.0.0.1:{port}", f"--key-file={tmp_path}/key", f"--wait={wait}"]
    command = [sys.executable, "-I", SCRIPT, *options, "--model=one", "--model=two"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert GOOD_KEY not in done.stdout + done.stderr
    assert not done.stderr
    return done.returncode, done.stdout


def test_it_sends_a_chat_and_a_stream_to_each_model_and_a_wrong_key(gateway: Gateway, tmp_path: Path) -> None:
    status, said = run(gateway, tmp_path)
    assert status == 0
    assert said.splitlines() == [
        "ok    models: lists one, two",
        "ok    chat with one: 1 tokens",
        "ok    stream from one: 1 chunks and an end",
        "ok    chat with two: 1 tokens",
        "ok    stream from two: 1 chunks and an end",
        "ok    wrong key: refused with 401",
        "passed",
    ]


def test_it_waits_for_models_that_load(gateway: Gateway, tmp_path: Path) -> None:
    gateway.fault = "loading"
    assert run(gateway, tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("no model", "WRONG models: the gateway does not have every model after 0 s; it answers 200 and lists none"),
        ("refuses two", "WRONG chat with two: status 503: "),
        ("empty", "WRONG chat with one: an empty answer"),
        ("cut", "WRONG stream from one: the stream has no end"),
        ("any key", "WRONG wrong key: status 200 where 401 should be"),
    ],
)
def test_it_fails_and_says_why(gateway: Gateway, tmp_path: Path, fault: str, says: str) -> None:
    gateway.fault = fault
    status, said = run(gateway, tmp_path, wait=0)
    assert status == 1
    assert says in said
    assert said.endswith("failed\n")


def test_it_says_when_nothing_answers(tmp_path: Path) -> None:
    with socket.socket() as nobody:  # bound and not listening: whoever connects is refused
        nobody.bind(("127.0.0.1", 0))
        status, said = run_against(nobody.getsockname()[1], tmp_path, wait=0)
    assert status == 1
    assert "it does not answer" in said
