"""Step 3, recall: has this tenant had exactly this answer before? Replays it whole or as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from services.common import sse
from services.common.wire import Answer, Usage
from services.gateway.admit import Admission
from services.gateway.call import Call, Reply, Spent


def recall(call: Call, admission: Admission, spent: Spent) -> Reply | None:
    """The cached answer as a reply, None when there is none."""
    if admission.cached is None:
        return None
    body: dict[str, Any] = json.loads(admission.cached)
    spent.outcome = "cached"
    # A replay is a new answer to a new request; only what it says is old.
    fresh = Answer.new(call.kind, body["model"])
    if call.streamed:
        return Reply(events=_replay(fresh, body, wants_usage=call.request.wants_usage))
    return Reply(body=sse.dump({**body, "id": fresh.id, "created": fresh.created}))


def _replay(answer: Answer, body: dict[str, Any], *, wants_usage: bool) -> Iterator[sse.Event]:
    choice = body["choices"][0]
    text = choice["message"]["content"] if answer.kind == "chat" else choice["text"]
    chunks = [answer.first(), answer.delta(text), answer.last(choice["finish_reason"])]
    if wants_usage and (usage := Usage.of(body.get("usage"))):
        chunks.append(answer.usage(usage))
    for chunk in chunks:
        if chunk is not None:
            yield sse.Event(sse.dump(chunk))
    yield sse.Event(b"[DONE]")


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
