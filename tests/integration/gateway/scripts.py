"""What the scripted pods of these tests answer."""

from __future__ import annotations

from typing import Any

from services.common import sse
from services.common.wire import Answer, Kind, Usage
from tests.unit.gateway.scripted_pod import Handler


def kind_of(body: dict[str, Any]) -> Kind:
    return "chat" if "messages" in body else "text"


def hello(handler: Handler, body: dict[str, Any]) -> None:
    """Says "Hello" in two tokens, whole or streamed, as a pod of ours does."""
    answer = Answer.new(kind_of(body), body["model"])
    if not body.get("stream"):
        handler.answer(200, answer.whole([("Hello", "stop")], Usage(5, 2)))
        return
    handler.start_stream()
    for piece in hello_stream(answer):
        handler.send_piece(piece)
    handler.end_stream()


def hello_stream(answer: Answer) -> list[bytes]:
    """The stream of `hello`, block by block."""
    first = answer.first()
    opening = [noted(0, [], first)] if first else []
    return [
        *opening,
        noted(1, [1], answer.delta("Hel")),
        noted(2, [2], answer.delta("lo")),
        noted(2, [], answer.last("stop")),
        noted(2, [], answer.usage(Usage(5, 2))),
        sse.DONE,
    ]


def noted(count: int, ids: list[int], body: dict[str, Any]) -> bytes:
    """A block with a pod's note: so many tokens so far, of a prompt of five, and these with this chunk."""
    return sse.note({"completion_tokens": count, "token_ids": ids, "prompt_tokens": 5}) + sse.event(body)


def refuse(status: int, code: str, headers: dict[str, str] | None = None) -> Any:
    """A pod that refuses everything with our envelope."""

    def script(handler: Handler, _body: dict[str, Any]) -> None:
        envelope = {"error": {"message": f"because {code}", "type": "some_error", "param": "messages", "code": code}}
        handler.answer(status, envelope, headers)

    return script


def break_before_answer(handler: Handler, _body: dict[str, Any]) -> None:
    handler.break_off()


def break_in_stream(handler: Handler, body: dict[str, Any]) -> None:
    handler.start_stream()
    for piece in hello_stream(Answer.new(kind_of(body), body["model"]))[:2]:
        handler.send_piece(piece)
    handler.break_off()
