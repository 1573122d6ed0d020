"""A real pod whose steps take their time, as a large model's do, so that tests can act between two of them.

`gunicorn -c python:services.inference.gunicorn_conf tests.e2e.slow_pod:create_app()`
"""

from __future__ import annotations

import time
from typing import Any

from services.inference import app
from services.inference.engine.run import Runner

STEP = 0.2
"""Seconds that a step takes at least."""


def create_app() -> Any:
    """The pod's own application."""
    forward = Runner.forward

    def slow(runner: Runner, plan: Any) -> Any:
        time.sleep(STEP)
        return forward(runner, plan)

    Runner.forward = slow  # type: ignore[method-assign]
    return app.create_app()
