"""From a Flask request to a `Call`, and from a `Reply` to a Flask response."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flask import Response, g, request

from services.common import sse
from services.common.errors import InvalidRequest
from services.common.ids import new_id
from services.common.telemetry import SESSION_HEADER, TIMEOUT_HEADER
from services.common.wire import ChatRequest, CompletionRequest, Kind, validate
from services.gateway import policy
from services.gateway.aliases import conversation_of, resolve
from services.gateway.call import Call, Reply
from services.gateway.parts import Gateway
from services.gateway.recall import known
from services.gateway.recall.exact import directives
from services.gateway.spans import enter

COMPLETION_TOKENS = 16
"""`max_tokens` of a text completion that names none, at OpenAI and in vLLM."""


def read_call(gateway: Gateway, kind: Kind, body: dict[str, Any]) -> Call:
    """The current Flask request, with `body` in OpenAI's format, as a call.

    Raises:
        InvalidRequest: a field or header has a wrong value; names it.
    """
    settings = gateway.settings
    policy.apply(settings, body)
    body.pop("cache_salt", None)  # the tenant's salt is the gateway's to set
    if body.get("max_tokens") is None and (kind != "chat" or body.get("max_completion_tokens") is None):
        most = settings.default_max_tokens
        body["max_tokens"] = most if kind == "chat" else min(most, COMPLETION_TOKENS)
    session = request.headers.get(SESSION_HEADER)
    asked_model = body.get("model")
    if isinstance(asked_model, str) and (weights := settings.aliases.get(asked_model)) is not None:
        body["model"] = resolve(asked_model, weights, conversation_of(body, session))
    parsed = validate(ChatRequest if kind == "chat" else CompletionRequest, body)
    sent = request.environ
    traceparent, parent_span = g.traceparent, None
    if gateway.spans is not None:
        traceparent, parent_span = enter(traceparent, sent.get("HTTP_TRACEPARENT"))
    use_cache, keep = directives(sent["HTTP_CACHE_CONTROL"]) if "HTTP_CACHE_CONTROL" in sent else (True, True)
    resumable = settings.stream_replay_ttl > 0 and parsed.stream and "text/event-stream" in sent.get("HTTP_ACCEPT", "")
    return Call(
        kind=kind,
        request=parsed,
        body=body,
        authorization=request.headers.get("Authorization"),
        request_id=g.request_id,
        traceparent=traceparent,
        parent_span=parent_span,
        started=g.started,
        timeout=_timeout(settings.route_timeouts.get(request.path, settings.request_timeout)),
        use_cache=use_cache,
        keep=keep,
        resumable=bool(resumable),
        last_event_id=sent.get("HTTP_LAST_EVENT_ID") if resumable else None,
        idempotency_key=sent.get("HTTP_IDEMPOTENCY_KEY") if settings.idempotency_ttl else None,
        client=sent.get("gunicorn.socket"),
        id=sent.get(known.CALL) or new_id(),
        # Of a stream it is not told: what is given before Flask is asked is whole.
        body_digest=sent.get(known.BODY) if parsed.model == asked_model and not parsed.stream else None,
        asked_model=str(asked_model),
        session=session,
        log_fields=g.log_fields,
    )


def _timeout(limit: float) -> float:
    """The route's time-out, or less where the client asks for less."""
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return limit
    try:
        asked = float(given)
    except ValueError:
        asked = 0.0
    if not 0 < asked < float("inf"):
        raise InvalidRequest(f"{TIMEOUT_HEADER} must be a positive number of seconds.", param=TIMEOUT_HEADER)
    return min(limit, asked)


def respond(reply: Reply) -> Response:
    """The reply in OpenAI's own format."""
    if reply.events is None:
        return finish(Response(reply.body, mimetype="application/json"), reply)
    return stream(reply, sse.Event.frame)


def stream(reply: Reply, frame: Callable[[sse.Event], bytes]) -> Response:
    """A streamed reply, each event put into bytes by `frame`."""
    events = reply.events or iter(())
    if reply.frames is not None:
        return finish(Response(reply.frames(events, frame), content_type=sse.CONTENT_TYPE, headers=sse.HEADERS), reply)

    def frames() -> Iterator[bytes]:
        for event in events:
            if data := frame(event):
                yield data

    return finish(Response(frames(), content_type=sse.CONTENT_TYPE, headers=sse.HEADERS), reply)


def finish(response: Response, reply: Reply) -> Response:
    """Adds the reply's headers, and closes it when the last byte has gone or the client has."""
    response.status_code = reply.status
    response.headers.extend(reply.headers)  # none of them is there yet, so that none need be looked for
    response.call_on_close(reply.close)
    return response
