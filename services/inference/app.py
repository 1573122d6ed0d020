"""The Flask application of an inference pod.

Run it with `gunicorn -c python:services.inference.gunicorn_conf`: one process, which owns the models, and a thread for
every request.
"""

from __future__ import annotations

from flask import Flask, Response, jsonify

from services.common.metrics import EngineMetrics
from services.common.settings import InferenceSettings
from services.common.telemetry import configure_logging
from services.inference import api, calls, load
from services.inference.catalogue import parse_catalogue
from services.inference.models import Models
from services.inference.watchdog import logged_once
from services.web import edge

MAX_BODY_BYTES = 64 << 20
"""The gateway holds the limit that clients meet; this one only bounds memory, since a long context is megabytes."""


def create_app(settings: InferenceSettings | None = None) -> Flask:
    """The application; begins to load the first model and returns at once.

    Raises:
        ValueError: a setting is wrong, said in one sentence.
    """
    settings = settings or InferenceSettings()
    configure_logging("inference", settings)
    catalogue = parse_catalogue(settings.model)
    models = Models(catalogue, settings, EngineMetrics())
    app = edge.create_app("inference", max_body_bytes=MAX_BODY_BYTES, trouble=logged_once(models.trouble))
    app.extensions["forebay.models"] = models  # where the hooks of gunicorn_conf.py find them
    followed = calls.Calls()
    api.register(app, models, followed, settings)
    calls.register(app, followed)
    load.register(app, models, settings.max_batch)

    @app.get("/readyz")
    def readyz() -> tuple[Response, int]:
        body, status = models.status()
        return jsonify(body), status

    models.start()
    return app
