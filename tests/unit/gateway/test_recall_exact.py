"""What a request allows of the cache, and an answer that is given again in either form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.common.wire import Answer, ChatRequest, CompletionRequest, Kind, Usage, validate
from services.gateway.call import Call, Spent
from services.gateway.recall.exact import chunks, directives, replay, text_of, whole_answer


def call(kind: Kind = "chat", **fields: Any) -> Call:
    body = {"model": "m", "temperature": 0, **fields}
    body |= {"messages": [{"role": "user", "content": "hi"}]} if kind == "chat" else {"prompt": "hi"}
    request = validate(ChatRequest if kind == "chat" else CompletionRequest, body)
    return Call(kind, request, body, None, "r", "t", 0.0, 60.0, True, None)


def events(data: list[bytes]) -> list[Any]:
    return [one.decode() if one == b"[DONE]" else json.loads(one) for one in data]


@pytest.mark.parametrize(
    ("header", "may_read", "may_keep"),
    [
        ("", True, True),
        ("max-stale=60, no-transform", True, True),
        ("no-cache", False, True),
        ("No-Cache , max-age=0", False, True),
        ("max-age=0", False, True),
        ("no-store", False, False),
        ("no-cache,NO-STORE", False, False),
        ("x-no-store", True, True),
    ],
)
def test_what_cache_control_allows(header: str, *, may_read: bool, may_keep: bool) -> None:
    assert directives(header) == (may_read, may_keep)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_kept_answer_is_given_again_whole_under_an_id_of_its_own(kind: Kind) -> None:
    kept = Answer.new(kind, "m").whole([("Hello", "stop")], Usage(5, 2))
    spent = Spent()
    reply = replay(call(kind), spent, json.dumps(kept).encode())
    body = json.loads(reply.body or b"")
    assert body["id"] != kept["id"]
    assert {**body, "id": 0, "created": 0} == {**kept, "id": 0, "created": 0}
    assert spent.tokens == Usage(5, 2)


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("wants_usage", [True, False])
def test_a_kept_answer_is_given_again_as_a_stream(kind: Kind, *, wants_usage: bool) -> None:
    kept = Answer.new(kind, "m").whole([("Hello", "stop")], Usage(5, 2))
    asked = call(kind, stream=True, stream_options={"include_usage": wants_usage})
    reply = replay(asked, Spent(), json.dumps(kept).encode())
    *told, done = events([event.data or b"" for event in reply.events or ()])
    assert done == "[DONE]"
    text = "".join(c["delta"].get("content", "") if kind == "chat" else c["text"] for e in told for c in e["choices"])
    assert text == "Hello"
    assert [event["usage"]["total_tokens"] for event in told if "usage" in event] == ([7] if wants_usage else [])


def test_who_has_a_part_gets_the_rest() -> None:
    kept = Answer.new("chat", "m").whole([("Hello", "stop")], Usage(5, 2))
    told = events(list(chunks(call(stream=True), Answer.new("chat", "m"), kept, "Hel")))
    assert [one["choices"][0]["delta"] for one in told[:-1]] == [{"content": "lo"}, {}]


def test_calls_of_tools_are_not_lost_in_a_stream() -> None:
    kept = Answer.new("chat", "m").whole([("", "tool_calls")], Usage(5, 2))
    tools = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    kept["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": tools}
    told = events(list(chunks(call(stream=True), Answer.new("chat", "m"), kept)))
    assert told[1]["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **tools[0]}]
    assert text_of(kept) == ""


def test_a_stream_that_came_to_its_end_is_a_whole_answer() -> None:
    spent = Spent(text=["Hel", "lo"], finish="stop", usage=Usage(5, 2))
    body = json.loads(whole_answer(call(), spent) or b"")
    assert text_of(body) == "Hello"
    assert body["usage"]["total_tokens"] == 7


@pytest.mark.parametrize(
    "spent",
    [
        Spent(text=["Hel"], usage=Usage(5, 2)),
        Spent(text=["Hello"], finish="stop"),
        Spent(text=["Hello"], finish="stop", usage=Usage(5, 2), cacheable=False),
    ],
)
def test_one_that_did_not_or_holds_more_than_text_is_none(spent: Spent) -> None:
    assert whole_answer(call(), spent) is None


class TestCharge:
    """What a call pays where others had made its answer, or a part of it."""

    def test_an_answer_of_others_costs_nothing_and_counts_as_saved(self) -> None:
        spent = Spent(recalled="coalesced", usage=Usage(5, 2))
        assert (spent.charged.total_tokens, spent.saved.total_tokens) == (0, 7)

    def test_who_goes_on_pays_for_the_rest(self) -> None:
        spent = Spent(given=3, usage=Usage(5, 10))
        assert (spent.charged, spent.saved) == (Usage(5, 7), Usage(0, 3))

    def test_nobody_else_pays_less(self) -> None:
        spent = Spent(usage=Usage(5, 10, cached_tokens=4))
        assert (spent.charged, spent.saved.total_tokens) == (Usage(5, 10, cached_tokens=4), 0)
