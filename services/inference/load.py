"""How full the pod is, told with every answer in ORCA's response header, by which gateways choose among pods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Flask, Response, request

from services.common.orca import LOAD_HEADER, Report

if TYPE_CHECKING:
    from services.inference.engine.meter import Load
    from services.inference.models import Models


def report_of(loads: Iterable[Load], max_batch: int) -> Report:
    """The pod's report: all its engines together, each of which runs `max_batch` requests at once."""
    engines = list(loads)
    rates = [one.rate for one in engines if one.rate is not None]
    return Report(
        waiting=sum(one.waiting for one in engines),
        running=sum(one.running for one in engines),
        capacity=max_batch * max(1, len(engines)),
        kv_usage=round(max((one.kv_usage for one in engines), default=0.0), 3),
        rate=round(sum(rates), 3) if rates else None,
    )


def register(app: Flask, models: Models, max_batch: int) -> None:
    """Has the answers of `app` that gateways read carry the report: to a request, and to a look at `/readyz`."""

    @app.after_request
    def report(response: Response) -> Response:
        if request.path == "/readyz" or request.path.startswith("/v1/"):
            response.headers[LOAD_HEADER] = report_of(models.loads(), max_batch).header()
        return response
