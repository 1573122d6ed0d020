"""The edge that both services share: every failure is an envelope, every answer has an id, every request one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, g, jsonify, request
from flask.testing import FlaskClient
from gunicorn.http.errors import InvalidChunkSize
from prometheus_client import REGISTRY

from services.common.errors import ModelNotFound, RateLimited
from services.web import edge


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    before = set(REGISTRY._collector_to_names)
    app = edge.create_app("test", max_body_bytes=100, trouble=lambda: app.config.get("TROUBLE"))

    @app.post("/echo")
    def echo() -> Response:
        return jsonify(request.get_json())

    @app.get("/things/<name>")
    def thing(name: str) -> Response:
        g.log_fields.update(tokens=3, route="replica=a")
        return jsonify(name=name)

    @app.get("/missing-model")
    def missing_model() -> Response:
        raise ModelNotFound("m")

    @app.get("/slow-down")
    def slow_down() -> Response:
        raise RateLimited("slow down", retry_after=1.2)

    @app.get("/bug")
    def bug() -> Response:
        raise KeyError("the password is hunter2")

    @app.post("/cut")
    def cut() -> Response:
        raise InvalidChunkSize(b"zz")

    @app.get("/stream")
    def stream() -> Response:
        return Response(iter([b"a", b"b"]), mimetype="text/plain")

    yield app
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def error_of(answer: Any) -> dict[str, Any]:
    assert answer.is_json
    body = answer.get_json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/echo", 405, "method_not_allowed"),
        ("GET", "/missing-model", 404, "model_not_found"),
        ("GET", "/slow-down", 429, "rate_limit_exceeded"),
        ("GET", "/bug", 500, "internal_error"),
        ("POST", "/cut", 400, "malformed_body"),
    ],
)
def test_every_failure_is_answered_with_the_envelope(
    client: FlaskClient, method: str, path: str, status: int, code: str
) -> None:
    answer = client.open(path, method=method)
    assert answer.status_code == status
    assert error_of(answer)["code"] == code


def test_a_body_that_is_too_large_is_refused_with_the_envelope(client: FlaskClient) -> None:
    answer = client.post("/echo", data=b"x" * 101, content_type="application/json")
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "request_too_large"


def test_a_body_of_another_kind_is_refused_with_the_envelope(client: FlaskClient) -> None:
    answer = client.post("/echo", data=b"x", content_type="text/plain")
    assert answer.status_code == 415
    assert error_of(answer)["code"] == "unsupported_media_type"


def test_a_compressed_body_is_refused_and_told_what_would_do(client: FlaskClient) -> None:
    answer = client.post("/echo", data=b"{}", headers={"Content-Encoding": "gzip"}, content_type="application/json")
    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "identity")
    assert error_of(answer)["param"] == "Content-Encoding"


def test_a_body_that_says_that_it_is_not_encoded_is_taken(client: FlaskClient) -> None:
    answer = client.post("/echo", data=b"{}", headers={"Content-Encoding": "identity"}, content_type="application/json")
    assert answer.status_code == 200


def test_a_wrong_method_says_which_ones_are_right(client: FlaskClient) -> None:
    assert set(client.delete("/echo").headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


def test_a_refused_client_is_told_how_long_to_wait(client: FlaskClient) -> None:
    assert client.get("/slow-down").headers["Retry-After"] == "2"


def test_an_unforeseen_error_tells_the_client_nothing_of_its_inside(client: FlaskClient) -> None:
    assert "hunter2" not in client.get("/bug").get_data(as_text=True)


def test_an_unforeseen_error_is_logged_with_its_traceback(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.get("/bug")
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= logging.ERROR] == [True]


@pytest.mark.parametrize("path", ["/nowhere", "/missing-model", "/slow-down"])
def test_a_foreseen_error_is_logged_without_a_traceback(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    client.get(path)
    assert all(record.exc_info is None for record in caplog.records)


def test_a_request_id_is_given_back(client: FlaskClient) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "mine-7"}).headers["X-Request-Id"] == "mine-7"


@pytest.mark.parametrize("headers", [{}, {"X-Request-Id": "a b"}, {"X-Request-Id": "x" * 500}])
def test_a_request_without_a_harmless_id_gets_one(client: FlaskClient, headers: dict[str, str]) -> None:
    assert client.get("/healthz", headers=headers).headers["X-Request-Id"].startswith("req-")


@pytest.mark.parametrize("path", ["/nowhere", "/bug"])
def test_an_error_has_a_request_id_too(client: FlaskClient, path: str) -> None:
    assert client.get(path, headers={"X-Request-Id": "mine-7"}).headers["X-Request-Id"] == "mine-7"


def access_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.name == "forebay.access"]


def test_a_request_is_one_log_line_with_what_the_service_adds(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client.get("/things/seven?q=secret", headers={"X-Request-Id": "mine-7"}).close()
    (line,) = access_lines(caplog)
    assert {name: line[name] for name in ("request_id", "method", "path", "status", "tokens", "route")} == {
        "request_id": "mine-7",
        "method": "GET",
        "path": "/things/<name>",
        "status": 200,
        "tokens": 3,
        "route": "replica=a",
    }
    assert "secret" not in str(line)


def test_the_line_of_an_error_names_its_code(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client.get("/missing-model").close()
    (line,) = access_lines(caplog)
    assert (line["status"], line["error"]) == (404, "model_not_found")


def test_the_line_of_a_stream_is_written_at_its_end(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    answer = client.get("/stream", buffered=False)
    assert access_lines(caplog) == []
    answer.close()
    assert len(access_lines(caplog)) == 1


def test_probes_are_not_logged(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client.get("/healthz").close()
    client.get("/health").close()
    assert access_lines(caplog) == []


def test_a_path_that_no_route_knows_is_one_label_in_the_log(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client.get("/a/random/path").close()
    (line,) = access_lines(caplog)
    assert line["path"] == "unknown"


def test_a_service_that_is_up_says_so(client: FlaskClient) -> None:
    assert client.get("/healthz").get_json() == {"status": "ok"}
    assert client.get("/health").get_json() == {"status": "ok"}


def test_a_service_in_trouble_says_why_and_says_when_it_is_over(app: Flask, client: FlaskClient) -> None:
    app.config["TROUBLE"] = "It hangs."
    answer = client.get("/healthz")
    assert (answer.status_code, answer.get_json()) == (503, {"status": "failed", "reason": "It hangs."})
    app.config["TROUBLE"] = None
    assert client.get("/healthz").status_code == 200
