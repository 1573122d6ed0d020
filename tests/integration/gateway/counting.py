"""A pod that counts aloud: its answer to anything is `w1 w2 w3 …`, as many words as tokens are asked for.

It goes on where it is told by `resume_token_ids`, and stops before a word until the test lets it go on.
"""

from __future__ import annotations

import json
import select
import threading
from dataclasses import dataclass, field
from typing import Any

import httpx2

from services.common import sse
from services.common.wire import Answer, Usage
from tests.integration.gateway.scripts import kind_of, noted
from tests.unit.gateway.scripted_pod import Handler


@dataclass
class Counting:
    """`pause_at`: the word before which it waits for `go_on`, None for no wait. `bodies`: what it was asked."""

    pause_at: int | None = None
    pace: float = 0.0
    """Seconds between words."""
    go_on: threading.Event = field(default_factory=threading.Event)
    waiting: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    """Somebody hung up while it waited."""
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @property
    def resumed(self) -> list[list[int]]:
        """The tokens after which it was told to go on."""
        return [body["resume_token_ids"] for body in self.bodies if body.get("resume_token_ids")]

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        if handler.path.startswith("/internal"):  # a gateway asks what became of calls
            handler.answer(404, {})
            return
        self.bodies.append(body)
        answer = Answer.new(kind_of(body), body["model"])
        given, count = len(body.get("resume_token_ids") or ()), body["max_tokens"]
        if not body.get("stream"):
            if self._pause(handler, self.pause_at):
                handler.answer(200, answer.whole([(words(count), "length")], Usage(5, count)))
            return
        handler.start_stream()
        first = answer.first()
        if not given and first:
            handler.send_piece(noted(0, [], first))
        for number in range(given + 1, count + 1):
            if not self._pause(handler, number):
                return
            handler.send_piece(noted(number, [number], answer.delta(f"w{number} ")))
        handler.send_piece(noted(count, [], answer.last("length")))
        handler.send_piece(noted(count, [], answer.usage(Usage(5, count))))
        handler.send_piece(sse.DONE)
        handler.end_stream()

    def _pause(self, handler: Handler, number: int | None) -> bool:
        """Waits where it is to; False when the other side hung up meanwhile."""
        if self.pace and select.select([handler.connection], [], [], self.pace)[0]:
            handler.break_off()
            return False
        if number is None or number != self.pause_at:
            return True
        self.waiting.set()
        while not self.go_on.is_set():
            if select.select([handler.connection], [], [], 0.02)[0]:
                self.left.set()
                handler.break_off()
                return False
        return True


def words(count: int) -> str:
    """What it says when asked for so many tokens."""
    return "".join(f"w{number} " for number in range(1, count + 1))


def ask(count: int, *, stream: bool = False, **fields: Any) -> dict[str, Any]:
    """The body of a deterministic request for so many words."""
    messages = [{"role": "user", "content": "count"}]
    return {"model": "m", "messages": messages, "max_tokens": count, "temperature": 0, "stream": stream, **fields}


def said(answer: httpx2.Response) -> str:
    """The text of an answer, whole or streamed; a stream must have come to its end, under one head."""
    assert answer.status_code == 200, answer.text
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return str(answer.json()["choices"][0]["message"]["content"])
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]", answer.text[-500:]
    chunks = [json.loads(one) for one in data[:-1]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
