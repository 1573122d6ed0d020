"""The OpenAI wire format: requests as validated models, answers and stream chunks as plain dictionaries.

Both services validate with the same models. Unknown fields are kept, so that the gateway can relay what another engine
understands and ours does not. Reference: OpenAI API, chat completions, completions and models.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import from_json

from services.common.errors import InvalidRequest, MalformedJson

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

MAX_TOKENS = 2**31 - 1
"""No count of tokens is larger: what is, is a mistake, and would not fit into Redis' numbers."""
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
"""Characters of one stop sequence; the engine compares each with the end of the text at every token."""
MAX_PROMPTS = 2048
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS)]


class WireModel(BaseModel):
    """Strict types (no "5" for 5), unknown fields kept."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class TextPart(WireModel):
    type: Literal["text"]
    text: str


class Message(WireModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

    def text(self) -> str:
        """The content as one string."""
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(WireModel):
    include_usage: bool = False


class GenerationRequest(WireModel):
    """What chat and text completions have in common: OpenAI's fields, and those that vLLM adds (top_k, min_p,
    repetition_penalty, min_tokens, stop_token_ids, ignore_eos, priority, cache_salt)."""

    model: str = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKENS)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(None, max_length=1024)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    stop_token_ids: list[TokenId] | None = Field(None, max_length=128)
    ignore_eos: bool | None = None
    n: int | None = Field(None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = Field(None, ge=-(2**31), le=2**31 - 1)
    """Smaller goes first."""
    cache_salt: str | None = Field(None, max_length=256)
    """Whose request it is, set by the gateway: cached prefixes and turns are shared by it."""
    resume_token_ids: list[TokenId] | None = Field(None, max_length=1 << 20)
    """The answer's first tokens, whose text the client has: the gateway's way to go on where a pod was lost."""

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = value if isinstance(value, list) else [value or ""]
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop sequences are allowed")
        if any(len(text) > MAX_STOP_LENGTH for text in stops):
            raise ValueError(f"a stop sequence may have at most {MAX_STOP_LENGTH} characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _check_logit_bias(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (value or {}).items():
            # One way to write each number, so that no token is named twice.
            if not (token.isascii() and token.isdecimal() and len(token) < 10 and str(int(token)) == token):
                raise ValueError("its keys must be token ids, written as decimal numbers")
            if not -100 <= bias <= 100:
                raise ValueError("a bias must be from -100 to 100")
        return value

    @model_validator(mode="after")
    def _check_resume(self) -> Self:
        if self.resume_token_ids and self.choices > 1:
            raise ValueError("resume_token_ids continues a single answer, not one of several choices")
        return self

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate, None when the request names no limit."""
        return self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Stop sequences as a list, empty ones left out."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in found if text]

    @property
    def wants_usage(self) -> bool:
        """Whether a stream shall end with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def deterministic(self) -> bool:
        """Whether the same request always has the same answer: greedy, or sampled with a seed."""
        return self.temperature == 0 or self.seed is not None

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    @property
    def logprob_count(self) -> int | None:
        """How many of the likeliest tokens to report with each one, None when no log probabilities are asked for."""
        return None


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    chat_template_kwargs: dict[str, Any] | None = Field(None, max_length=32)
    """Variables of the model's chat template, as vLLM takes them: `{"enable_thinking": false}`."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @field_validator("top_logprobs")
    @classmethod
    def _check_top_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("it is allowed only where 'logprobs' is true")
        return value

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`. A prompt is text or token ids; there may be several, which is answered as several
    choices: the choices of the first prompt, then those of the second, and so on."""

    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: str | list[Any]) -> str | list[Any]:
        if not value and isinstance(value, list):
            raise ValueError("it must not be empty")
        if not isinstance(value, str) and not isinstance(value[0], int) and len(value) > MAX_PROMPTS:
            raise ValueError(f"at most {MAX_PROMPTS} prompts are allowed in one request")
        return value

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list, one or several."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt

    @property
    def choices(self) -> int:
        return super().choices * len(self.prompts)

    @property
    def logprob_count(self) -> int | None:
        return self.logprobs


Request = TypeVar("Request", bound=BaseModel)


def parse_json(body: bytes) -> dict[str, Any]:
    """A request body as a dictionary.

    Raises:
        MalformedJson: it is not JSON, not UTF-8, nested too deep, or not an object.
    """
    try:
        # Some clients on Windows write the mark, which RFC 8259 section 8.1 lets a reader pass over.
        value = from_json(body.removeprefix(BYTE_ORDER_MARK), allow_inf_nan=False)
    except ValueError as error:
        raise MalformedJson(f"The request body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise MalformedJson("The request body must be a JSON object.")
    return value


def validate(kind: type[Request], value: Mapping[str, Any]) -> Request:
    """`value` as a model of `kind`.

    Raises:
        InvalidRequest: names the first field that is wrong, and why.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        where, reason = _first(error, value)
        message = f"Invalid value for '{where}': {reason}." if where else f"{reason}."
        raise InvalidRequest(message, param=where) from None


def _first(error: ValidationError, value: Mapping[str, Any]) -> tuple[str | None, str]:
    """Where the first thing is wrong, and why. pydantic tells of every branch of a union that the value is not: the
    branch that went deepest is the one that was meant."""
    found = error.errors(include_url=False, include_input=False)
    paths = [_path_in(value, each["loc"], missing=each["type"] == "missing") for each in found]
    at = max((n for n in range(len(found)) if found[n]["loc"][:1] == found[0]["loc"][:1]), key=lambda n: len(paths[n]))
    return ".".join(paths[at]) or None, found[at]["msg"].removeprefix("Value error, ")


def _path_in(value: Any, location: tuple[int | str, ...], *, missing: bool) -> list[str]:
    """The location as a path into `value`; leaves out the names of union branches that pydantic puts in it."""
    path = []
    for number, part in enumerate(location, 1):
        if isinstance(value, Mapping) and isinstance(part, str):
            if part not in value and not (missing and number == len(location)):
                continue
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        path.append(str(part))
    return path


@dataclass(frozen=True)
class Usage:
    """What one request used.

    cached_tokens: prompt tokens that a prefix cache spared. compute_seconds: its part of the time that the engine
    computed. energy_joules: its part of the energy. Each is None where the engine does not tell.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    compute_seconds: float | None = None
    energy_joules: float | None = None

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def body(self) -> dict[str, Any]:
        """OpenAI's fields, and `forebay` with what OpenAI has none for."""
        body: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
        }
        if self.cached_tokens is not None:
            body["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        costs = {"compute_seconds": self.compute_seconds, "energy_joules": self.energy_joules}
        known = {name: round(cost, 6) for name, cost in costs.items() if cost is not None}
        return {**body, "forebay": known} if known else body

    @classmethod
    def of(cls, body: Mapping[str, Any] | None) -> Usage | None:
        """The usage that a response body carries, None when it has none."""
        if not body:
            return None
        details, costs = body.get("prompt_tokens_details") or {}, body.get("forebay") or {}
        return cls(
            int(body.get("prompt_tokens") or 0),
            int(body.get("completion_tokens") or 0),
            details.get("cached_tokens"),
            costs.get("compute_seconds"),
            costs.get("energy_joules"),
        )


Kind = Literal["chat", "text"]


@dataclass(frozen=True)
class Answer:
    """Makes the bodies of one answer, whole or in chunks, for chat (`chat`) and text completions (`text`)."""

    kind: Kind
    id: str
    model: str
    created: int

    @classmethod
    def new(cls, kind: Kind, model: str) -> Answer:
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        return cls(kind, f"{prefix}-{uuid.uuid4().hex}", model, int(time.time()))

    def whole(
        self, texts: Listing[tuple[str, FinishReason]], usage: Usage, logprobs: Listing[dict[str, Any] | None] = ()
    ) -> dict[str, Any]:
        """The body of a non-streamed answer: one choice for each (text, finish reason), with its log probabilities
        where there are any."""
        choices: list[dict[str, Any]] = []
        for index, (text, finish) in enumerate(texts):
            content = {"message": {"role": "assistant", "content": text}} if self.kind == "chat" else {"text": text}
            found = logprobs[index] if logprobs else None
            choices.append({"index": index, **content, "logprobs": found, "finish_reason": finish})
        return {**self._head(streamed=False), "choices": choices, "usage": usage.body()}

    def first(self, index: int = 0) -> dict[str, Any] | None:
        """The chunk that opens a choice; text completions have none."""
        return self._chunk(index, {"role": "assistant", "content": ""}) if self.kind == "chat" else None

    def delta(self, text: str, index: int = 0, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        """A chunk of text, with the log probabilities of the tokens since the last one where there are any."""
        return self._chunk(index, {"content": text} if self.kind == "chat" else text, logprobs=logprobs)

    def last(self, finish: FinishReason, index: int = 0, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        """The chunk that closes a choice."""
        return self._chunk(index, {} if self.kind == "chat" else "", finish, logprobs)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk that ends a stream whose client asked for usage."""
        return {**self._head(streamed=True), "choices": [], "usage": usage.body()}

    def _chunk(
        self, index: int, content: Any, finish: FinishReason | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        piece = {"delta": content} if self.kind == "chat" else {"text": content}
        choice = {"index": index, **piece, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head(streamed=True), "choices": [choice]}

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        names = {"chat": ("chat.completion", "chat.completion.chunk"), "text": ("text_completion", "text_completion")}
        return {"id": self.id, "object": names[self.kind][streamed], "created": self.created, "model": self.model}


def model_list(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The body of `GET /v1/models` for models by name, each with its further fields."""
    rows = [{"id": name, "object": "model", "owned_by": "forebay", **more} for name, more in models.items()]
    return {"object": "list", "data": rows}
