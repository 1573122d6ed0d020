"""What the two `gunicorn_conf.py` files share: the metrics folder, the metrics port, the log, refusals in JSON."""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import socket
import tempfile
from typing import Any

from gunicorn import util
from gunicorn.glogging import Logger

from services.common.errors import HttpError

log = logging.getLogger("forebay.serve")


def prepare_metrics_folder() -> None:
    """Gives the workers an empty folder for their metrics; must run before anything imports `prometheus_client`.

    Raises:
        OSError: the folder cannot be made.
    """
    folder = tempfile.mkdtemp(prefix="forebay-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    master = os.getpid()

    def remove() -> None:
        if os.getpid() == master:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)


def serve_metrics(host: str, port: int) -> None:
    """Starts `/metrics` on its own port, in gunicorn's master: one answer for all workers.

    Raises:
        SystemExit: the port cannot be had; the log says which and why.
    """
    from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics  # noqa: PLC0415

    try:
        GunicornPrometheusMetrics.start_http_server_when_ready(port, host=host)
    except OSError as error:
        log.critical("no metrics on port %d (%s): set FOREBAY_METRICS_PORT to a free one", port, error)
        raise SystemExit(1) from None


def forget_worker(_server: Any, worker: Any) -> None:
    """gunicorn's `child_exit` hook: a worker that ended no longer counts in gauges."""
    from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics  # noqa: PLC0415

    GunicornPrometheusMetrics.mark_process_dead_on_child_exit(worker.pid)


def refuse_in_json() -> None:
    """Has gunicorn answer in OpenAI's envelope too where it refuses a request itself, before any application sees it:
    a line or header that is too long, or no HTTP at all. It has no hook for that, and would write HTML."""
    util.write_error = _write_error


def _write_error(client: socket.socket, status: int, reason: str, message: str) -> None:
    body = json.dumps(HttpError(status, f"{reason}: {message}" if message else f"{reason}.").envelope()).encode()
    head = f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    util.write_nonblock(client, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


class JsonLogger(Logger):  # type: ignore[misc]
    """gunicorn's own lines (start, workers, errors) through the root logger, so that they are JSON like all others."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
