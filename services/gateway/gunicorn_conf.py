"""How gunicorn runs a gateway: `gunicorn -c python:services.gateway.gunicorn_conf`.

Cooperative workers (gevent), since the gateway does nothing but wait on sockets; `drain.py` says how one ends.
"""

from __future__ import annotations

import gc
from typing import Any

from services.web.serve import JsonLogger, forget_worker, prepare_metrics_folder, refuse_in_json, serve_metrics

prepare_metrics_folder()

from services.common.settings import GatewaySettings  # noqa: E402
from services.common.telemetry import configure_logging  # noqa: E402
from services.gateway import drain  # noqa: E402

_settings = GatewaySettings()
configure_logging("gateway", _settings)
refuse_in_json()

wsgi_app = "services.gateway.app:create_app()"
bind = f"{_settings.host}:{_settings.gateway_port}"
worker_class = "services.gateway.drain.Worker"
workers = _settings.gateway_workers
worker_connections = _settings.gateway_connections
keepalive = 75  # longer than the 60 s of common load balancers, so that they and not we close an idle connection
timeout = 60  # for a worker's heartbeat, not for a request: those have deadlines of their own
graceful_timeout = drain.longest(_settings)
limit_request_line = 8190  # the most that gunicorn takes; a prompt may stand in the query
control_socket_disable = True
proc_name = "forebay-gateway"

logger_class = JsonLogger
child_exit = forget_worker


def when_ready(_server: Any) -> None:
    serve_metrics(_settings.host, _settings.metrics_port)


def post_worker_init(_worker: Any) -> None:
    # What there is now stays: looking through all of it again and again would cost a twentieth of the processor, and
    # hold each stream up for tens of milliseconds at a time. Requests leave little behind that goes in circles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def worker_exit(_server: Any, worker: Any) -> None:
    gc.unfreeze()  # or the interpreter takes things apart in an order in which some miss others
    from services.gateway.app import close  # noqa: PLC0415  # not in the master, which has no gevent

    app = getattr(worker, "wsgi", None)
    if app is not None:
        close(app)
