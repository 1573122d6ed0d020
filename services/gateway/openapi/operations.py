"""The table of routes: generation, models, log-in, probes, and the description itself."""

from __future__ import annotations

from pydantic import Field

from services.common.wire import ChatRequest, CompletionRequest
from services.gateway.openapi import answers
from services.gateway.openapi.administration import ADMINISTRATION
from services.gateway.openapi.operation import CSV, EVENTS, TEXT, Good, Operation
from services.gateway.routes.admin.usage import OwnUsageQuery, UsageShown
from services.gateway.routes.guide import GuideQuery, GuideRequest
from services.gateway.routes.login import LoginRequest, LogoutRequest

CALL = (
    "X-Request-Id",
    "traceparent",
    "X-Forebay-Timeout",
    "X-Forebay-Session",
    "Cache-Control",
    "Idempotency-Key",
    "Last-Event-ID",
)
"""What each route that generates reads."""
REFUSED = (404, 409, 429, 502, 503, 504)
"""What each route that generates may refuse with."""


class CacheQuery(GuideQuery):
    """As `/generate` takes it, and greedy where it does not say otherwise."""

    prompt: str = Field("", description="Or `q`.")
    q: str | None = Field(None, description="The prompt, by a shorter name.")


class DynamicQuery(GuideQuery):
    prompt: str = Field("", description="Without one, the model is loaded and nothing answered.")


class DynamicRequest(GuideRequest):
    prompt: str = Field("", description="Without one, the model is loaded and nothing answered.")


def _generates(method: str, path: str, summary: str, **more: object) -> Operation:
    return Operation(
        method=method,  # type: ignore[arg-type]
        path=path,
        summary=summary,
        scope="inference",
        headers=CALL,
        errors=REFUSED,
        **more,  # type: ignore[arg-type]
    )


GENERATION = (
    _generates(
        "POST",
        "/v1/chat/completions",
        "Answer a chat",
        tag="OpenAI",
        body=ChatRequest,
        good=(Good("The answer", answers.ChatCompletion, stream=answers.ChatCompletionChunk),),
    ),
    _generates(
        "POST",
        "/v1/completions",
        "Continue a text",
        tag="OpenAI",
        body=CompletionRequest,
        good=(Good("The continuation", answers.Completion, stream=answers.Completion),),
    ),
    Operation(
        "GET", "/v1/models", "List the models", "OpenAI", (Good("The models", answers.ModelList),), scope="inference"
    ),
    Operation(
        "GET",
        "/v1/models/{name}",
        "Show a model",
        "OpenAI",
        (Good("The model", answers.Model),),
        scope="inference",
        errors=(404,),
    ),
    Operation(
        "GET",
        "/v1/usage",
        "Sum up what you used, and what it cost",
        "OpenAI",
        (Good("A page of the list", UsageShown, text=CSV, many=True),),
        query=OwnUsageQuery,
        scope="inference",
        errors=(503,),
    ),
    _generates(
        "POST",
        "/generate",
        "Answer a prompt",
        tag="Deployment guide",
        body=GuideRequest,
        good=(Good("The answer", answers.Generated),),
    ),
    _generates(
        "GET",
        "/stream",
        "Answer a prompt as events",
        tag="Deployment guide",
        query=GuideQuery,
        good=(Good("`data: <text>` events", content=EVENTS),),
    ),
    _generates(
        "POST",
        "/stream",
        "Answer a prompt as events",
        tag="Deployment guide",
        body=GuideRequest,
        good=(Good("`data: <text>` events", content=EVENTS),),
    ),
    _generates(
        "GET",
        "/cache",
        "Answer a prompt from the cache where it is there",
        tag="Deployment guide",
        query=CacheQuery,
        good=(Good("The answer's text", content=TEXT),),
    ),
    _generates(
        "GET",
        "/dynamic",
        "Load a model, or answer a prompt by it",
        tag="Deployment guide",
        query=DynamicQuery,
        good=(Good("The model and its answer", answers.Loaded),),
    ),
    _generates(
        "POST",
        "/dynamic",
        "Load a model, or answer a prompt by it",
        tag="Deployment guide",
        body=DynamicRequest,
        good=(Good("The model and its answer", answers.Loaded),),
    ),
)

LOGIN = (
    Operation(
        "POST",
        "/login",
        "Exchange name and password for tokens",
        "Log-in",
        (Good("An access and a refresh token", answers.Tokens),),
        body=LoginRequest,
        errors=(401, 429),
    ),
    Operation(
        "POST",
        "/refresh",
        "Exchange a refresh token, which is spent, for new tokens",
        "Log-in",
        (Good("An access and a refresh token", answers.Tokens),),
        token="refresh",  # noqa: S106
    ),
    Operation(
        "POST",
        "/logout",
        "End the access token, and a refresh token with it",
        "Log-in",
        (Good("It has ended", status=204, content=None),),
        token="access",  # noqa: S106
        body=LogoutRequest,
        body_needed=False,
    ),
)

PROBES = (
    Operation("GET", "/health", "As `/healthz`", "Probes", (Good("It is", answers.Health),), errors=(503,)),
    Operation(
        "GET", "/healthz", "Whether the process is well", "Probes", (Good("It is", answers.Health),), errors=(503,)
    ),
    Operation(
        "GET",
        "/readyz",
        "Whether requests are taken",
        "Probes",
        (Good("They are", answers.Readiness), Good("Not yet, or not any more", answers.Readiness, status=503)),
    ),
)

DESCRIPTION = (
    Operation("GET", "/openapi.json", "This description", "Description", (Good("OpenAPI 3.1", answers.Open),)),
    Operation("GET", "/docs", "This description for people", "Description", (Good("A page", content="text/html"),)),
)

OPERATIONS: tuple[Operation, ...] = (*GENERATION, *LOGIN, *ADMINISTRATION, *PROBES, *DESCRIPTION)
"""Every route of the gateway."""
