"""The routes of a pod: OpenAI's chat completions, completions and models, whole or as a stream.

A stream's headers leave with its first token, so that whatever fails before has its proper status.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Listing
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from flask import Flask, Response, g, jsonify, request

from services.common import sse
from services.common.errors import ModelNotFound
from services.common.settings import InferenceSettings
from services.common.telemetry import CALL_HEADER, TIMEOUT_HEADER, WEIGHT_HEADER
from services.common.wire import (
    Answer,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Kind,
    model_list,
    parse_json,
    validate,
)
from services.inference.answers import Choice, make_choices, read, stream, usage, whole
from services.inference.calls import Calls
from services.inference.chat import chat_prompt, completion_prompts
from services.inference.disconnect import Watcher
from services.inference.models import Models
from services.inference.parameters import read_number, refuse_unsupported
from services.inference.submit import Terms, cancel, submitted

if TYPE_CHECKING:
    from services.inference.engine.engine import Engine

AnyRequest = TypeVar("AnyRequest", ChatRequest, CompletionRequest)
Encode = Callable[["Engine"], list[list[int]]]
"""The ids of a request's prompts, by the tokenizer of its model."""


def register(app: Flask, models: Models, calls: Calls, settings: InferenceSettings) -> None:
    """Adds the routes to an application; what their calls cost is kept in `calls`."""
    watcher = Watcher()
    started = int(time.time())

    @app.post("/v1/chat/completions")
    def chat_completions() -> Response:
        asked = _read(ChatRequest)
        return answer("chat", asked, lambda engine: [chat_prompt(asked, engine.loaded.tokenizer)])

    @app.post("/v1/completions")
    def completions() -> Response:
        asked = _read(CompletionRequest)
        return answer(
            "text", asked, lambda engine: completion_prompts(asked, engine.loaded.tokenizer, engine.loaded.vocabulary)
        )

    @app.get("/v1/models")
    def list_models() -> Response:
        return jsonify(model_list(describe()))

    @app.get("/v1/models/<path:name>")
    def show_model(name: str) -> Response:
        known = describe()
        if name not in known:
            raise ModelNotFound(name)
        return jsonify(model_list({name: known[name]})["data"][0])

    def describe() -> dict[str, dict[str, Any]]:
        return {name: {"created": started, **more} for name, more in models.describe().items()}

    def answer(kind: Kind, asked: GenerationRequest, encode: Encode) -> Response:
        g.log_fields["model"] = asked.model if asked.model in models.describe() else "unknown"
        timeout, weight = request.headers.get(TIMEOUT_HEADER), request.headers.get(WEIGHT_HEADER)
        deadline = g.started + read_number(TIMEOUT_HEADER, timeout, settings.request_timeout, least=0, most=86_400)
        weighs = read_number(WEIGHT_HEADER, weight, 1, least=0.001, most=1000)
        watch = partial(watcher.watch, request.environ.get("gunicorn.socket"))
        with ExitStack() as held:
            engine = held.enter_context(models.use(asked.model, deadline, watch))
            terms = Terms(deadline, weighs, models.adapter(asked.model), settings.max_batch + settings.max_queue)
            generations = held.enter_context(submitted(engine, asked, encode(engine), terms))
            choices = make_choices(kind, asked, generations, engine.loaded.tokenizer)
            calls.follow(request.headers.get(CALL_HEADER), generations, partial(usage, asked, choices))
            held.callback(_log, g.log_fields, asked, choices)
            held.enter_context(watch(partial(cancel, generations)))
            pieces = read(choices)
            pieces = chain([next(pieces)], pieces)
            head = Answer.new(kind, asked.model)
            if not asked.stream:
                return jsonify(whole(head, asked, choices, pieces))
            response = Response(stream(head, asked, choices, pieces), mimetype="text/event-stream")
            response.headers.update(sse.HEADERS)
            response.content_type = sse.CONTENT_TYPE
            # Not in the generator's `finally`: a client that is gone before the first write never starts it.
            response.call_on_close(held.pop_all().close)
            return response


def _read(kind: type[AnyRequest]) -> AnyRequest:
    """The body as a request that the engine can answer in full."""
    body = parse_json(request.get_data())
    asked = validate(kind, body)
    refuse_unsupported(asked, body)
    return asked


def _log(fields: dict[str, Any], asked: GenerationRequest, choices: Listing[Choice]) -> None:
    used = usage(asked, choices)
    fields.update(prompt_tokens=used.prompt_tokens, completion_tokens=used.completion_tokens)
    generations = [choice.generation for choice in choices]
    outcomes = [generation.outcome or "cancelled" for generation in generations]
    fields["outcome"] = next((outcome for outcome in outcomes if outcome not in {"stop", "length"}), outcomes[0])
    times = [one.first_token - one.arrived for one in generations if one.first_token is not None]
    if times:
        fields["ttft"] = round(min(times), 4)
