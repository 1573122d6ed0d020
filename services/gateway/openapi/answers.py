"""Bodies of answers that other code makes as plain dictionaries: OpenAI's objects, the guide's, log-in, probes, errors.

Another engine may add fields to what it answers, so OpenAI's objects are open where ours are closed.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorDetail(Closed):
    message: str = Field(description="A sentence for people.")
    type: str
    param: str | None = Field(description="The field or header that is wrong.")
    code: str = Field(description="For programs, such as `rate_limit_exceeded`.")


class Error(Closed):
    """Every refusal and failure, on every route."""

    error: ErrorDetail


class PromptTokensDetails(Open):
    cached_tokens: int = Field(description="Tokens of the prompt that a prefix cache spared.")


class Costs(Open):
    compute_seconds: float | None = None
    energy_joules: float | None = None


class Usage(Open):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: PromptTokensDetails | None = None
    forebay: Costs | None = None


class AnswerMessage(Open):
    role: Literal["assistant"]
    content: str | None


class ChatChoice(Open):
    index: int = Field(ge=0)
    message: AnswerMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: str


class ChatCompletion(Open):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(Open):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Open):
    index: int = Field(ge=0)
    delta: Delta
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(Open):
    """The `data` of one event of a streamed chat completion. The last event's is `[DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextChoice(Open):
    index: int = Field(ge=0)
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class Completion(Open):
    """A text completion, or the `data` of one event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Model(Open):
    id: str
    object: Literal["model"]
    owned_by: str


class ModelList(Closed):
    object: Literal["list"]
    data: list[Model]


class Generated(Closed):
    response: str


class Loaded(Closed):
    model: str
    response: str | None = Field(None, description="Where a prompt was given.")
    status: Literal["loaded"] | None = Field(None, description="Where none was.")


class Tokens(Closed):
    """RFC 6749 section 5.1."""

    access_token: str
    refresh_token: str
    token_type: Literal["Bearer"]
    expires_in: int = Field(description="Seconds that the access token is good for.")


class Health(Closed):
    status: Literal["ok", "failed"]
    reason: str | None = None


class Readiness(Closed):
    status: Literal["ready", "waiting", "draining"]
    models: list[str] | None = None
    reason: str | None = Field(None, description="What is waited for.")
