"""OpenAI's routes."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, request

from services.common.errors import ModelNotFound
from services.common.wire import model_list, parse_json
from services.gateway.catalogue import models_of
from services.gateway.identify import require
from services.gateway.parts import Gateway
from services.gateway.request import answer
from services.gateway.routes.calls import read_call, respond


def blueprint(gateway: Gateway) -> Blueprint:
    routes = Blueprint("openai", __name__, url_prefix="/v1")

    @routes.post("/chat/completions")
    def chat_completions() -> Response:
        return respond(answer(gateway, read_call(gateway, "chat", parse_json(request.get_data()))))

    @routes.post("/completions")
    def completions() -> Response:
        return respond(answer(gateway, read_call(gateway, "text", parse_json(request.get_data()))))

    @routes.get("/models")
    def models() -> Response:
        return jsonify(model_list(rows()))

    @routes.get("/models/<path:name>")
    def model(name: str) -> Response:
        found = rows()
        if name not in found:
            raise ModelNotFound(name)
        return jsonify(model_list({name: found[name]})["data"][0])

    def rows() -> dict[str, dict[str, Any]]:
        principal = gateway.identifier.identify(request.headers.get("Authorization"))
        require(principal, "inference")
        return models_of(gateway, principal)

    return routes
