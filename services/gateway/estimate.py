"""How many tokens a prompt will have, before a pod has counted them: learnt from what pods have counted before.

For the reservation only, which the true count replaces. It had better be too high than too low: what is reserved too
much comes back within the call, and what is reserved too little may be spent beyond a limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.wire import ChatRequest, CompletionRequest, GenerationRequest

BYTES_PER_TOKEN = 3.0
"""As long as nothing is known of a model. English has about four, code, and scripts of three bytes a letter, three."""
MESSAGE_TOKENS = 4
"""What a chat template adds to each message."""
TEMPLATE_TOKENS = 40
"""What it may add besides, as long as nothing is known: many bring a system message of their own."""
LONG = 1000
"""Bytes from which on a prompt tells how long its tokens are; a shorter one tells what the template adds."""
FORGETS = 1 / 64
"""How fast a high count is forgotten that is not seen again, for each call."""


@dataclass(frozen=True, slots=True)
class Size:
    """What can be said of a prompt without its model."""

    text_bytes: int = 0
    messages: int = 0
    token_ids: int = 0
    """Of a prompt that was given as such, whose count is certain."""


@dataclass(slots=True)
class _Learnt:
    extra: float | None = None
    """Tokens that a prompt has beyond those of its text and messages."""
    per_byte: float = 1 / BYTES_PER_TOKEN


def size_of(request: GenerationRequest) -> Size:
    """The size of the request's prompts."""
    if isinstance(request, ChatRequest):
        return Size(sum(_bytes(message.text()) for message in request.messages), len(request.messages))
    text = ids = 0
    if isinstance(request, CompletionRequest):
        for part in request.prompts:
            if isinstance(part, str):
                text += _bytes(part)
            else:
                ids += len(part)
    return Size(text, 0, ids)


class Estimates:
    """What this process has learnt of each model, for chats and for plain text apart."""

    def __init__(self) -> None:
        self._learnt: dict[tuple[str, bool], _Learnt] = {}

    def prompt_tokens(self, model: str, size: Size) -> int:
        """How many tokens the prompt will have at most, as far as anyone knows."""
        learnt = self._learnt.get((model, size.messages > 0)) or _Learnt()
        extra = (TEMPLATE_TOKENS if size.messages else 1) if learnt.extra is None else learnt.extra
        return size.token_ids + size.messages * MESSAGE_TOKENS + int(size.text_bytes * learnt.per_byte + extra + 0.999)

    def learn(self, model: str, size: Size, tokens: int) -> None:
        """A pod of the model has counted so many tokens of a prompt of this size. Rises at once and falls slowly."""
        key = model, size.messages > 0
        learnt = self._learnt.get(key)
        if learnt is None:
            learnt = self._learnt[key] = _Learnt()
        rest = tokens - size.token_ids - size.messages * MESSAGE_TOKENS
        if size.text_bytes < LONG or learnt.extra is None:
            seen = max(0.0, rest - size.text_bytes * learnt.per_byte)
            learnt.extra = seen if learnt.extra is None else _follow(learnt.extra, seen)
        else:
            seen = (rest - learnt.extra) / size.text_bytes
            learnt.per_byte = min(1.0, max(0.0, _follow(learnt.per_byte, seen)))


def _follow(known: float, seen: float) -> float:
    return seen if seen > known else known + (seen - known) * FORGETS


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))
