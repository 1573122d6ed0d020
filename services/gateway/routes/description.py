"""`/openapi.json` and `/docs`: what the gateway speaks. Open to everybody, since it says nothing of this one."""

from __future__ import annotations

from functools import cache

from flask import Blueprint, Response, render_template

from services.common import sse
from services.gateway.openapi import document

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Content-Security-Policy: the page runs nothing and fetches nothing, from here or anywhere else."""


@cache
def _document() -> bytes:
    return sse.dump(document())


@cache
def _page() -> str:
    return render_template("docs.html", api=document())


def blueprint() -> Blueprint:
    routes = Blueprint("description", __name__, template_folder="../openapi")

    @routes.get("/openapi.json")
    def openapi() -> Response:
        return Response(_document(), mimetype="application/json")

    @routes.get("/docs")
    def docs() -> Response:
        return Response(_page(), mimetype="text/html", headers={"Content-Security-Policy": POLICY})

    return routes
