"""A Flask application as both services want it: JSON errors everywhere, request ids, one log line per request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import cache, partial

from flask import Flask, Request, Response, g, jsonify, request
from flask.ctx import _AppCtxGlobals
from gunicorn.http.errors import ChunkMissingTerminator, InvalidChunkExtension, InvalidChunkSize
from werkzeug.exceptions import HTTPException

from services.common.errors import ApiError, HttpError, MalformedBody
from services.common.metrics import HttpMetrics
from services.common.telemetry import REQUEST_ID_HEADER, TRACE_HEADER, accept_request_id, accept_traceparent, request_id

log = logging.getLogger("forebay.access")
HEALTH = ("/healthz", "/health")
"""Kubernetes' name of it, and the one that vLLM, TGI and SGLang have and their clients ask."""
PROBES = (*HEALTH, "/readyz")
REQUEST_ID_VARIABLE = "HTTP_" + REQUEST_ID_HEADER.upper().replace("-", "_")
TRACE_VARIABLE = "HTTP_" + TRACE_HEADER.upper()
"""The headers as WSGI has them."""
BROKEN_BODY = (ChunkMissingTerminator, InvalidChunkExtension, InvalidChunkSize)
"""What gunicorn raises where the client's chunked body is none (RFC 9112 section 7.1)."""


def create_app(name: str, *, max_body_bytes: int, trouble: Callable[[], str | None] = lambda: None) -> Flask:
    """An application with the shared edge and no routes of its own but `/healthz`, also `/health`.

    Args:
        trouble: why the process should be started anew, in one sentence; None while it is well. Must not wait.
    """
    app = Flask(name, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.strict_slashes = False
    app.before_request(_open)
    app.after_request(partial(_close, http_metrics()))
    app.register_error_handler(Exception, answer_error)
    for path in HEALTH:
        app.add_url_rule(path, view_func=lambda: _health(trouble()), endpoint=path.strip("/"))
    return app


@cache
def http_metrics() -> HttpMetrics:
    """The process's, whose registry takes each name once, however many applications it makes."""
    return HttpMetrics()


def _health(trouble: str | None) -> tuple[Response, int]:
    return (jsonify(status="ok"), 200) if trouble is None else (jsonify(status="failed", reason=trouble), 503)


def answer_error(error: Exception) -> Response:
    """Any exception as the error envelope. Only what nobody foresaw is logged with a traceback."""
    if isinstance(error, HTTPException):
        if error.response is not None:
            return error.response  # type: ignore[return-value]
        status = error.code or 500
        known: ApiError = HttpError(status, f"{error.name}: {error.description}", headers=_kept_headers(error))
    elif isinstance(error, ApiError):
        known = error
    elif isinstance(error, BROKEN_BODY):
        known = MalformedBody("The request body is not what its Transfer-Encoding says.")
    else:
        log.exception("unhandled error")
        known = ApiError("The server had an error while processing your request.")
    g.log_fields["error"] = known.code
    response = jsonify(known.envelope())
    response.status_code = known.status
    response.headers.update(known.headers)
    return response


def _kept_headers(error: HTTPException) -> dict[str, str]:
    return {name: value for name, value in error.get_headers() if name in {"Allow", "Retry-After"}}


def _open() -> None:
    # Flask's proxies look their object up at each access, which a request does here often enough to feel it.
    found: _AppCtxGlobals = g._get_current_object()
    sent = request.environ
    found.started = time.monotonic()
    found.request_id = accept_request_id(sent.get(REQUEST_ID_VARIABLE))
    found.traceparent = accept_traceparent(sent.get(TRACE_VARIABLE))
    found.log_fields = {}
    request_id.set(found.request_id)
    if (coding := sent.get("HTTP_CONTENT_ENCODING")) and coding.lower() != "identity":
        # RFC 9110 section 12.5.3: the answer says which codings would do.
        message = f"The request body is encoded as '{coding}': send it as it is, without a Content-Encoding."
        raise HttpError(415, message, param="Content-Encoding", headers={"Accept-Encoding": "identity"})


def _close(metrics: HttpMetrics, response: Response) -> Response:
    found: _AppCtxGlobals = g._get_current_object()
    asked: Request = request._get_current_object()  # type: ignore[attr-defined]
    response.headers[REQUEST_ID_HEADER] = found.request_id
    if asked.path not in PROBES:
        rule = asked.url_rule.rule if asked.url_rule else "unknown"
        metrics.count(asked.method, rule, response.status_code, time.monotonic() - found.started)
        # At the end of the body, so that the line of a stream has its whole duration and its final counts.
        response.call_on_close(partial(_write_line, response, found, asked.method, rule))
    return response


def _write_line(response: Response, found: _AppCtxGlobals, method: str, rule: str) -> None:
    status, fields = response.status_code, found.log_fields
    log_request(found.request_id, method, rule, status=status, started=found.started, fields=fields)


def log_request(
    identity: str, method: str, rule: str, *, status: int, started: float, fields: Mapping[str, object]
) -> None:
    """The line of a request that has ended, and arrived at `started` by the monotonic clock.

    Its `path` is Flask's rule; the fields may have a `route`, which is the way that a call went over the pods.
    """
    seconds = round(time.monotonic() - started, 4)
    facts = {"request_id": identity, "method": method, "path": rule, "status": status, "seconds": seconds, **fields}
    log.info("request", extra=facts)
