"""`forebay explain` puts the ledger's row of a request into words, or says why it can't."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from forebay.cli import main
from forebay.explain import POLICIES, explain
from services.cache.ledger import Entry
from services.gateway.call import Spent
from tests.ports import free_port


def row(**fields: Any) -> dict[str, Any]:
    entry = Entry(
        "id", "req-1", "demo", "t", "key:k", "a", "chat", "ok", 12, 8, 34, 1_795_000_000_000, 1500, ttft_ms=120
    )
    route = Spent(asked_model="a", model="a", upstream="http://10.0.0.7:8000", policy="prefix", queue=3, cache="miss")
    return {**asdict(entry), "cache": "miss", "upstream": route.upstream, "route": route.route, **fields}


@contextmanager
def gateway(status: int, body: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server that answers everything so; its URL, and the paths and credentials that it was asked with."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class TestWords:
    def test_a_plain_request(self) -> None:
        assert explain(row()).splitlines() == [
            "req-1  2026-11-18 11:06:40 UTC  chat of demo (key:k)",
            "  model    a",
            f"  replica  10.0.0.7:8000 (prefix: {POLICIES['prefix']})",
            "  queue    3 requests waited there when it was chosen",
            "  cache    miss: the answer was not in the response cache, and is kept there if it came to its end",
            "  retries  none",
            "  outcome  ok after 1.500 s, first token after 0.120 s",
            "  tokens   12 of prompt (8 from the pod's prefix cache), 34 of answer",
        ]

    def test_what_was_out_of_the_ordinary(self) -> None:
        spent = Spent(
            asked_model="prod", model="b", upstream="http://h:1", policy="only", held=2.5, retries=2, resumes=1
        )
        told = explain(row(model="b", route=spent.route, retries=2, resumes=1, cost_micros=1500, compute_seconds=0.25))
        assert "model    b, which stands for prod" in told
        assert "held     2.5 s for a pod to be ready" in told
        assert "retries  sent to another pod 2 times" in told
        assert "resumes  went on at another pod in mid-answer once" in told
        assert "0.250 s of compute, cost 0.001500" in told

    def test_an_answer_that_came_from_no_pod(self) -> None:
        told = explain(row(cache="hit", upstream="", route=Spent(model="a", asked_model="a", cache="hit").route))
        assert "replica  none" in told
        assert "cache    hit: the answer was in the response cache: no pod was asked" in told

    def test_a_row_without_a_route(self) -> None:
        """Of a gateway that died: what the pod knew, and nothing of how it got there."""
        assert "replica  http://10.0.0.7:8000" in explain(row(route="", cache="", ttft_ms=None))


class TestCommand:
    def test_it_asks_for_the_request_with_the_credential(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FOREBAY_ADMIN_KEY", "fb-key")
        with gateway(200, {"object": "list", "data": [row()]}) as (url, asked):
            assert main(["explain", "a/b", "--url", f"{url}/v1"]) == 0
        assert asked == [("/admin/requests/a%2Fb", "Bearer fb-key")]
        assert "  model    a\n" in capsys.readouterr().out

    def test_json_is_the_ledgers_rows(self, capsys: pytest.CaptureFixture[str]) -> None:
        with gateway(200, {"object": "list", "data": [row()]}) as (url, _):
            assert main(["explain", "req-1", "--url", url, "--key", "k", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == [row()]

    @pytest.mark.parametrize(
        ("status", "said"),
        [(401, "does not accept the key: no"), (403, "scope 'admin'"), (404, "no request req-1"), (500, "500: no")],
    )
    def test_a_refusal_is_one_sentence(self, capsys: pytest.CaptureFixture[str], status: int, said: str) -> None:
        with gateway(status, {"error": {"message": "no"}}) as (url, _):
            assert main(["explain", "req-1", "--url", url, "--key", "k"]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1

    def test_without_a_gateway(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["explain", "req-1", "--url", f"http://127.0.0.1:{free_port()}", "--key", "k"]) == 1
        assert "no gateway answers at" in capsys.readouterr().err

    @pytest.mark.parametrize("url", ["localhost:8080", "file:///etc/passwd"])
    def test_with_what_is_no_url(self, capsys: pytest.CaptureFixture[str], url: str) -> None:
        assert main(["explain", "req-1", "--url", url, "--key", "k"]) == 1
        assert "is no http:// or https:// URL" in capsys.readouterr().err

    def test_without_a_credential(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FOREBAY_ADMIN_KEY", raising=False)
        assert main(["explain", "req-1", "--url", "http://127.0.0.1:1"]) == 1
        assert "--key or FOREBAY_ADMIN_KEY" in capsys.readouterr().err
