"""The routes of a pod: OpenAI's chat completions, completions and models, whole or as a stream.

Nothing is silently ignored: a parameter that would change the answer and that the engine does not have is refused by
name. A stream's headers leave with its first token, so that whatever fails before has its proper status.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, g, jsonify, request

from services.common import sse
from services.common.errors import (
    ApiError,
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotFound,
    UnsupportedParameter,
)
from services.common.settings import InferenceSettings
from services.common.telemetry import TIMEOUT_HEADER
from services.common.wire import (
    Answer,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Kind,
    Usage,
    model_list,
    parse_json,
    validate,
)
from services.inference.chat import chat_prompt, completion_prompt
from services.inference.disconnect import Watcher
from services.inference.engine.sequence import Sampling
from services.inference.models import Models

if TYPE_CHECKING:
    from services.inference.engine.engine import Engine
    from services.inference.engine.generation import Generation, Piece

INERT = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "cache_salt",
}  # fmt: skip
"""Fields that say who asks or how to keep the answer, and do not change it."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
"""Values with which a parameter that is not supported asks for nothing; null is one of them for every parameter."""

Encode = Callable[["Engine"], list[int]]


def register(app: Flask, models: Models, settings: InferenceSettings) -> None:
    """Adds the routes to an application."""
    watcher = Watcher()
    started = int(time.time())

    @app.post("/v1/chat/completions")
    def chat_completions() -> Response:
        asked = _read(ChatRequest)
        return answer("chat", asked, lambda engine: chat_prompt(asked, engine.loaded.tokenizer))

    @app.post("/v1/completions")
    def completions() -> Response:
        asked = _read(CompletionRequest)
        return answer(
            "text", asked, lambda engine: completion_prompt(asked, engine.loaded.tokenizer, engine.loaded.vocabulary)
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
        deadline = g.started + _timeout(settings)
        with ExitStack() as held:
            engine = held.enter_context(models.use(asked.model, deadline))
            prompt = encode(engine)
            generation = _submit(engine, asked, prompt, deadline, "messages" if kind == "chat" else "prompt")
            held.callback(_log, g.log_fields, generation)
            held.callback(generation.cancel)
            held.enter_context(watcher.watch(request.environ.get("gunicorn.socket"), generation.cancel))
            pieces = iter(generation)
            first = next(pieces)
            head = Answer.new(kind, asked.model)
            if not asked.stream:
                return jsonify(_whole(head, generation, first, pieces))
            response = Response(_stream(head, asked, generation, first, pieces), mimetype="text/event-stream")
            response.headers.update(sse.HEADERS)
            response.content_type = sse.CONTENT_TYPE
            # Not in the generator's `finally`: a client that is gone before the first write never starts it.
            response.call_on_close(held.pop_all().close)
            return response


def _read(kind: type[Any]) -> Any:
    """The body as a request that the engine can answer in full."""
    body = parse_json(request.get_data())
    asked = validate(kind, body)
    _refuse_unsupported(kind, body)
    return asked


def _refuse_unsupported(kind: type[GenerationRequest], body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in INERT or value is None or _asks_for_nothing(name, value):
            continue
        if name not in kind.model_fields or name in NEUTRAL:
            raise UnsupportedParameter(f"The parameter '{name}' is not supported by this model server.", param=name)


def _asks_for_nothing(name: str, value: Any) -> bool:
    # In Python 0 == False, but `logprobs: 0` asks for something and `logprobs: false` does not.
    neutral = NEUTRAL.get(name, ())
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)


def _timeout(settings: InferenceSettings) -> float:
    """Seconds that the request may take: what the caller has left, else the setting."""
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return settings.request_timeout
    try:
        seconds = float(given)
    except ValueError:
        seconds = float("nan")
    if not 0 <= seconds <= 86_400:
        raise InvalidRequest(f"The header {TIMEOUT_HEADER} must be a number of seconds, from 0 to 86400.")
    return seconds


def _submit(engine: Engine, asked: GenerationRequest, prompt: list[int], deadline: float, param: str) -> Generation:
    context = engine.loaded.context_length
    if len(prompt) >= context:
        raise ContextLengthExceeded(
            f"The prompt has {len(prompt)} tokens, but the context length of this model is {context} tokens, "
            "prompt and answer together.",
            param=param,
        )
    left = context - len(prompt)
    default = engine.loaded.defaults
    sampling = Sampling(
        temperature=default.temperature if asked.temperature is None else asked.temperature,
        top_k=default.top_k if asked.top_k is None else max(asked.top_k, 0),
        top_p=default.top_p if asked.top_p is None else asked.top_p,
        seed=secrets.randbits(64) if asked.seed is None else asked.seed,
    )
    limit = min(asked.token_limit or left, left)
    return engine.submit(prompt, sampling, max_tokens=limit, stops=asked.stops, deadline=deadline)


def _whole(head: Answer, generation: Generation, first: Piece, pieces: Iterator[Piece]) -> dict[str, Any]:
    texts, last = [first.text], first
    for last in pieces:
        texts.append(last.text)
    return head.whole([("".join(texts), last.finish or "stop")], _usage(generation))


def _stream(
    head: Answer, asked: GenerationRequest, generation: Generation, first: Piece, pieces: Iterator[Piece]
) -> Iterator[bytes]:
    count = 0
    ids: list[int] = []

    def frame(chunk: dict[str, Any]) -> bytes:
        note = sse.note({"completion_tokens": count, "token_ids": ids})
        ids.clear()
        return note + sse.event(chunk)

    if (opening := head.first()) is not None:
        yield frame(opening)
    try:
        piece: Piece | None = first
        while piece is not None:
            if piece.token is not None:
                count += 1
                ids.append(piece.token)
            if piece.text:
                yield frame(head.delta(piece.text))
            if piece.finish is not None:
                yield frame(head.last(piece.finish))
            piece = next(pieces, None)
    except ApiError as error:
        yield sse.event(error.envelope())
        return
    if asked.wants_usage:
        yield frame(head.usage(_usage(generation)))
    yield sse.DONE


def _usage(generation: Generation) -> Usage:
    return Usage(generation.sequence.prompt_length, generation.sequence.generated)


def _log(fields: dict[str, Any], generation: Generation) -> None:
    usage = _usage(generation)
    fields.update(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)
    fields["outcome"] = generation.outcome or "cancelled"
    if generation.first_token is not None:
        fields["ttft"] = round(generation.first_token - generation.arrived, 4)
