"""A Flask application as both services want it: JSON errors everywhere, request ids, one log line per request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from flask import Flask, Response, g, jsonify, request
from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics
from werkzeug.exceptions import HTTPException

from services.common.errors import ApiError, HttpError
from services.common.telemetry import REQUEST_ID_HEADER, TRACE_HEADER, accept_request_id, accept_traceparent, request_id

log = logging.getLogger("forebay.access")
PROBES = ("/healthz", "/readyz")


def create_app(name: str, *, max_body_bytes: int, trouble: Callable[[], str | None] = lambda: None) -> Flask:
    """An application with the shared edge and no routes of its own but `/healthz`.

    Args:
        trouble: why the process should be started anew, in one sentence; None while it is well. Must not wait.
    """
    app = Flask(name, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.strict_slashes = False
    app.before_request(_open)
    app.after_request(_close)
    app.register_error_handler(Exception, answer_error)
    app.add_url_rule("/healthz", view_func=lambda: _health(trouble()), endpoint="healthz")
    # Grouped by rule, not by path: a scan of random paths must not make time series.
    GunicornPrometheusMetrics(app, group_by="url_rule", excluded_paths=[f"^{path}$" for path in PROBES])
    return app


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
    g.started = time.monotonic()
    g.request_id = accept_request_id(request.headers.get(REQUEST_ID_HEADER))
    g.traceparent = accept_traceparent(request.headers.get(TRACE_HEADER))
    g.log_fields = {}
    request_id.set(g.request_id)


def _close(response: Response) -> Response:
    response.headers[REQUEST_ID_HEADER] = g.request_id
    if request.path not in PROBES:
        # At the end of the body, so that the line of a stream has its whole duration and its final counts.
        response.call_on_close(_access_line(response))
    return response


def _access_line(response: Response) -> Callable[[], None]:
    method, rule = request.method, str(request.url_rule) if request.url_rule else "unknown"
    started, identity, fields = g.started, g.request_id, g.log_fields

    def write() -> None:
        log.info(
            "request",
            extra={
                "request_id": identity,
                "method": method,
                "route": rule,
                "status": response.status_code,
                "seconds": round(time.monotonic() - started, 4),
                **fields,
            },
        )

    return write
