"""The response cache: what makes two requests the same, and whose they are."""

import re

from services.cache.connection import Connection
from services.cache.kept import Kept
from services.cache.quotas import Quotas
from services.cache.responses import Responses, answer_key
from services.cache.windows import Ask, Limits

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


def test_the_same_request_has_the_same_key_whatever_its_order() -> None:
    assert answer_key("salt", "chat", BODY) == answer_key("salt", "chat", dict(reversed(BODY.items())))


def test_streaming_does_not_change_the_key() -> None:
    streamed = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    assert answer_key("salt", "chat", BODY) == answer_key("salt", "chat", streamed)


def test_anything_that_changes_the_answer_changes_the_key() -> None:
    others = [{**BODY, "model": "n"}, {**BODY, "temperature": 0.1}, {**BODY, "seed": 1}, {**BODY, "x_unknown": 1}]
    keys = {answer_key("salt", "chat", body) for body in [BODY, *others]}
    assert len(keys) == len(others) + 1


def test_another_tenant_has_another_key() -> None:
    assert answer_key("salt-a", "chat", BODY) != answer_key("salt-b", "chat", BODY)


def test_the_key_shows_nothing_of_the_prompt() -> None:
    key = answer_key("salt", "chat", {**BODY, "user": "someone"})
    assert re.fullmatch(r"forebay:kept:[0-9a-f]{64}", key)


def test_a_kept_answer_is_found(connection: Connection) -> None:
    Responses(connection, ttl=60, max_bytes=100).keep("kept", Kept(b"answer"))
    assert Quotas(connection).reserve(Ask("key:1", Limits(), 0, answer_key="kept")).cached == b"answer"


def test_an_answer_over_the_size_is_not_kept(connection: Connection) -> None:
    Responses(connection, ttl=60, max_bytes=3).keep("large", Kept(b"answer"))
    assert Quotas(connection).reserve(Ask("key:1", Limits(), 0, answer_key="large")).cached is None


def test_a_ttl_of_zero_turns_the_cache_off(connection: Connection) -> None:
    responses = Responses(connection, ttl=0, max_bytes=100)
    responses.keep("off", Kept(b"answer"))
    assert not responses.enabled
    assert Quotas(connection).reserve(Ask("key:1", Limits(), 0, answer_key="off")).cached is None
