"""Answers, stream chunks, usage and the list of models, as plain dictionaries."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Kind = Literal["chat", "text"]


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
