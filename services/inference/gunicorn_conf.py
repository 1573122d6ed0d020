"""How gunicorn runs a pod: one process that owns the models, a thread for each request.

`gunicorn -c python:services.inference.gunicorn_conf`
"""

import math
import os
import signal
import threading
from typing import Any

from gunicorn.errors import HaltServer

from services.common.settings import InferenceSettings
from services.common.telemetry import configure_logging
from services.inference.engine.ranks import ranks
from services.web import serve

# torch's threads wait for each other several hundred times a step. If they slept at once, waking them would take longer
# than the work; if they spun for as long as they do by default, then whatever else wants a core would keep it from the
# one that is waited for. A few microseconds have most of the gain and little of the harm (docs/performance.md). The
# policy is for pods that have loaded several models: each has its threads, and once there are more of them than cores,
# they would by default sleep at once, also where only one model is at work. Must be set before torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ["OMP_WAIT_POLICY"] = "ACTIVE"

settings = InferenceSettings()
serve.prepare_metrics_folder()
configure_logging("inference", settings)
serve.refuse_in_json()

wsgi_app = "services.inference.app:create_app()"
bind = f"{settings.host}:{settings.inference_port}"
workers = 1
worker_class = "gthread"
# A request that waits in the engine's queue holds its thread: there must be enough of them to fill the queue, so that
# the next is answered 429, and some more for the probes.
threads = settings.inference_threads or settings.max_batch + settings.max_queue + 16
worker_connections = threads + 1000
# One second more than requests get, in which those that were cut say so to their clients.
graceful_timeout = math.ceil(settings.shutdown_grace) + 1
# Converting or loading a model can keep the interpreter busy for long; that is no reason to kill the worker.
timeout = 600
keepalive = 75  # longer than the gateway keeps its connections, so that it is never this side that hangs up
control_socket_disable = True
logger_class = serve.JsonLogger
proc_name = "forebay-inference"


def when_ready(_server: Any) -> None:
    serve.serve_metrics(settings.host, settings.metrics_port)


def pre_fork(_server: Any, worker: Any) -> None:
    """A worker that died is replaced, but in a split model, where the other ranks are in the middle of its steps."""
    if ranks() > 1 and worker.age > 1:
        raise HaltServer("rank 0 is lost, so the pod ends", 1)


def post_worker_init(worker: Any) -> None:
    """On SIGTERM `/readyz` fails and gunicorn lets running requests finish. Those that have not after the grace get an
    error, not a cut connection."""
    models = worker.wsgi.extensions["forebay.models"]

    def drain(number: int, frame: Any) -> None:
        models.drain()
        cut = threading.Timer(settings.shutdown_grace, models.close)
        cut.daemon = True
        cut.start()
        worker.handle_exit(number, frame)

    signal.signal(signal.SIGTERM, drain)


def worker_exit(_server: Any, worker: Any) -> None:
    """Stops the engines between two steps, not the interpreter under them."""
    app = getattr(worker, "wsgi", None)
    if app is not None:
        app.extensions["forebay.models"].close()


child_exit = serve.forget_worker
