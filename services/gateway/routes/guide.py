"""The deployment guide's routes, on the same five steps as OpenAI's: `/generate`, `/stream`, `/cache`, `/dynamic`.

A prompt is sent as the user's message of a chat, so that an instruct model answers it instead of continuing it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, jsonify, request
from pydantic import ConfigDict, Field
from werkzeug.exceptions import MethodNotAllowed

from services.common import sse
from services.common.errors import HttpError, UpstreamUnavailable
from services.common.wire import MAX_TOKENS, WireModel, parse_json, validate
from services.gateway import policy
from services.gateway.call import Reply
from services.gateway.catalogue import default_model
from services.gateway.parts import Gateway
from services.gateway.request import answer
from services.gateway.routes.calls import finish, read_call, stream


class GuideRequest(WireModel):
    """What the guide's routes take: as a JSON body, or (then as text) in the query."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    prompt: str = Field(min_length=1)
    model: str | None = Field(None, min_length=1, max_length=256)
    max_length: int = Field(512, ge=1, le=MAX_TOKENS, description="The most tokens to generate.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKENS)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None


class GuideQuery(GuideRequest):
    model_config = ConfigDict(strict=False, extra="forbid", allow_inf_nan=False)


def blueprint(gateway: Gateway) -> Blueprint:
    routes = Blueprint("guide", __name__)

    @routes.before_request
    def refuse_head() -> None:
        """A HEAD would be computed and charged like its GET, and give nothing."""
        if request.method == "HEAD":
            raise MethodNotAllowed(("GET", "POST"))

    @routes.post("/generate")
    def generate() -> Response:
        reply = _answer(validate(GuideRequest, parse_json(request.get_data())), stream=False)
        return _whole(reply, lambda: jsonify(response=_text(reply)))

    @routes.route("/stream", methods=["GET", "POST"])
    def stream_tokens() -> Response:
        return stream(_answer(_read(), stream=True), _text_frame)

    @routes.get("/cache")
    def cached() -> Response:
        query = {"prompt" if name == "q" else name: value for name, value in request.args.items()}
        # Greedy, unless the query says otherwise: only a deterministic answer may be cached.
        asked = validate(GuideQuery, {"temperature": 0, **query})
        reply = _answer(asked, stream=False)
        return _whole(reply, lambda: Response(_text(reply), content_type="text/plain; charset=utf-8"))

    @routes.route("/dynamic", methods=["GET", "POST"])
    def dynamic() -> Response:
        values = _values()
        if "prompt" not in values:
            # Names a model only: one token of it makes a pod load it, and it stays loaded.
            reply = _answer(validate(GuideQuery, {**values, "prompt": "Hello", "max_length": 1}), stream=False)
            return _whole(reply, lambda: jsonify(model=_model(reply), status="loaded"))
        reply = _answer(_read(), stream=False)
        return _whole(reply, lambda: jsonify(model=_model(reply), response=_text(reply)))

    def _answer(asked: GuideRequest, *, stream: bool) -> Reply:
        model = asked.model
        if model is None:
            principal = gateway.identifier.identify(request.headers.get("Authorization"))
            model = default_model(gateway, principal)
        if model is None and gateway.fleet.known_models:
            raise HttpError(404, "There is no model that you have access to.", param="model", code="model_not_found")
        if model is None:
            raise UpstreamUnavailable("No pod is ready at the moment.", retry_after=5)
        # Looked at again as a message's content, where its refusal would name a field that the client did not send.
        policy.check({"prompt": asked.prompt}, depth=1, length=gateway.settings.max_text_length)
        rest = asked.model_dump(exclude={"prompt", "model", "max_length"}, exclude_none=True)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": asked.prompt}],
            "max_tokens": asked.max_length,
            "stream": stream,
            **rest,
        }
        return answer(gateway, read_call(gateway, "chat", body))

    return routes


def _whole(reply: Reply, read: Callable[[], Response]) -> Response:
    """What `read` makes of the reply, which is closed also where it can't be read, so that the call is settled."""
    try:
        response = read()
    except BaseException:
        reply.close()
        raise
    return finish(response, reply)


def _values() -> dict[str, Any]:
    return parse_json(request.get_data()) if request.method == "POST" else request.args.to_dict()


def _read() -> GuideRequest:
    return validate(GuideRequest if request.method == "POST" else GuideQuery, _values())


def _text(reply: Reply) -> str:
    return str(json.loads(reply.body or b"{}")["choices"][0]["message"]["content"])


def _model(reply: Reply) -> str:
    return str(json.loads(reply.body or b"{}")["model"])


def _text_frame(event: sse.Event) -> bytes:
    """A chunk as the guide's `data: <text>`; errors and the end stay as they are, chunks without text vanish."""
    if event.data is None or event.done:
        return event.frame()
    chunk = json.loads(event.data)
    if "error" in chunk:
        return event.frame()
    text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    return sse.text_event(text) if text else b""
