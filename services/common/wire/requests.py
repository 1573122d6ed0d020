"""Requests as validated models: chat and text completions, with OpenAI's fields and those that vLLM adds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

MAX_TOKENS = 2**31 - 1
"""No count of tokens is larger: what is, is a mistake, and would not fit into Redis' numbers."""
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
"""Characters of one stop sequence; the engine compares each with the end of the text at every token."""
MAX_PROMPTS = 2048
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
