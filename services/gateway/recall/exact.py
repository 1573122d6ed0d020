"""Answers that are kept: the exact answer to the exact same request, given again whole or as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from services.common import sse
from services.common.wire import Answer, Usage
from services.gateway.call import Call, Reply, Spent


def directives(cache_control: str) -> tuple[bool, bool]:
    """Whether a request with this `Cache-Control` may be answered from the cache, and whether its answer may be kept.

    RFC 9111, section 5.2.1: `no-cache` and `max-age=0` ask for a fresh answer, which may be kept; `no-store` forbids to
    keep it, and we do not read either what others kept. What we do not know is ignored, as it is to be.
    """
    given = {part.strip().lower() for part in cache_control.split(",")}
    keep = "no-store" not in given
    return keep and not given & {"no-cache", "max-age=0"}, keep


def replay(call: Call, spent: Spent, kept: bytes) -> Reply:
    """An answer's body as the reply to another request: only what it says is old, its id and time are new."""
    body: dict[str, Any] = from_json(kept)
    spent.outcome = "cached"
    spent.usage = Usage.of(body.get("usage"))
    fresh = Answer.new(call.kind, body["model"])
    if call.streamed:
        spent.answer = kept  # whoever follows the call is given the same
        return Reply(events=iter([sse.Event(data) for data in chunks(call, fresh, body)]))
    spent.answer = sse.dump({**body, "id": fresh.id, "created": fresh.created})
    return Reply(body=spent.answer)


def chunks(call: Call, answer: Answer, body: dict[str, Any], sent: str | None = None) -> Iterator[bytes]:
    """A whole answer as the data of a stream's events, after the text `sent`; None where nothing was sent at all."""
    choice = body["choices"][0]
    text, more = _content(choice)
    made: list[dict[str, Any] | None] = [answer.first()] if sent is None else []
    if more:
        made.append(_with(answer.delta(text), more))
    elif text := text.removeprefix(sent or ""):
        made.append(answer.delta(text))
    made.append(answer.last(choice["finish_reason"]))
    if call.request.wants_usage and (usage := Usage.of(body.get("usage"))):
        made.append(answer.usage(usage))
    for chunk in made:
        if chunk is not None:
            yield sse.dump(chunk)
    yield b"[DONE]"


def text_of(body: dict[str, Any]) -> str:
    """The text of a whole answer."""
    return _content(body["choices"][0])[0]


def whole_answer(call: Call, spent: Spent) -> bytes | None:
    """The answer as it may be kept: the body itself, or one put together from a stream's pieces. None when it did not
    reach its end, or holds more than text."""
    if not spent.cacheable or spent.usage is None:
        return None
    if spent.answer is not None:
        return spent.answer
    if spent.finish is None:
        return None
    text = "".join(spent.text)
    return sse.dump(Answer.new(call.kind, call.model).whole([(text, spent.finish)], spent.usage))


def _content(choice: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A choice's text, and what else its message holds: calls of tools, reasoning."""
    if "message" not in choice:
        return choice["text"], {}
    message = choice["message"]
    more = {name: value for name, value in message.items() if value and name not in {"role", "content"}}
    return message.get("content") or "", more


def _with(chunk: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" in more:  # in a stream each says its place
        more = {**more, "tool_calls": [{"index": index, **one} for index, one in enumerate(more["tool_calls"])]}
    chunk["choices"][0]["delta"].update(more)
    return chunk
