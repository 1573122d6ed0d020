"""A question that means the same is given the same answer, where that is turned on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from tests.integration.gateway.conftest import RunningGateway, StartGateway, until
from tests.integration.gateway.counting import Counting, ask, said, words
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

CAPITAL = "What is the capital of France?"


class Letters:
    """An embedding service whose vectors are the counts of letters, so that what is near is plain to see."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.status = 200

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        assert handler.path == "/v1/embeddings"
        self.texts.append(body["input"])
        vector = [float(body["input"].lower().count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"]
        handler.answer(self.status, {"data": [{"embedding": vector}]})


@contextmanager
def semantic(start_gateway: StartGateway, **settings: Any) -> Iterator[tuple[RunningGateway, Counting, Letters]]:
    pod, letters = Counting(), Letters()
    with scripted_pod(pod) as url, scripted_pod(letters) as embeddings:
        yield start_gateway(url, semantic_cache_url=embeddings, semantic_cache_timeout=5, **settings), pod, letters


def post(gateway: RunningGateway, text: str, *, key: str | None = None, **fields: Any) -> httpx2.Response:
    settled = gateway.metric("gen_ai_server_request_duration_seconds_count", model="m")
    with gateway.client(key) as client:
        answer = client.post(
            "/v1/chat/completions", json={**ask(4), "messages": [{"role": "user", "content": text}], **fields}
        )
    until(lambda: gateway.metric("gen_ai_server_request_duration_seconds_count", model="m") > settled)
    return answer


@pytest.mark.parametrize("stream", [True, False])
def test_a_question_of_nearly_the_same_letters_is_answered_alike(start_gateway: StartGateway, *, stream: bool) -> None:
    with semantic(start_gateway) as (gateway, pod, letters):
        first = post(gateway, CAPITAL)
        near = post(gateway, "what is the Capital of france", stream=stream)
        far = post(gateway, "How do I bake bread?")
        assert [said(answer) for answer in (first, near, far)] == [words(4)] * 3
        assert [one.headers["x-forebay-cache"] for one in (first, near, far)] == ["miss", "semantic", "miss"]
        assert float(near.headers["x-forebay-similarity"]) == 1.0
        assert "x-forebay-similarity" not in far.headers
        assert len(pod.bodies) == 2
        assert len(letters.texts) == 3
        assert post(gateway, CAPITAL).headers["x-forebay-cache"] == "hit"
        assert len(letters.texts) == 3, "the exact answer needs no meaning"
        saved = gateway.metric("forebay_gateway_saved_tokens_total", model="m", source="semantic")
        assert saved == 9


def test_the_threshold_decides(start_gateway: StartGateway) -> None:
    with semantic(start_gateway, semantic_cache_threshold=0.9) as (gateway, pod, _):
        post(gateway, CAPITAL)
        assert post(gateway, CAPITAL + " Pray tell").headers["x-forebay-cache"] == "semantic"
        assert post(gateway, CAPITAL + " zzzz").headers["x-forebay-cache"] == "miss"
        assert len(pod.bodies) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 5},
        {"seed": 3},
        {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "abc!"}]},
        {"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "abc!"}]},
        {"temperature": 1.0},
    ],
)
def test_all_else_must_be_the_same(start_gateway: StartGateway, fields: dict[str, Any]) -> None:
    with semantic(start_gateway) as (gateway, pod, _):
        post(gateway, "abc")
        assert post(gateway, "abc!", **fields).headers["x-forebay-cache"] != "semantic"
        assert len(pod.bodies) == 2


def test_another_tenants_questions_are_not_known(start_gateway: StartGateway) -> None:
    with semantic(start_gateway) as (gateway, pod, _):
        post(gateway, CAPITAL)
        answer = post(gateway, CAPITAL + "?", key=gateway.another_tenants_key())
        assert answer.headers["x-forebay-cache"] == "miss"
        assert len(pod.bodies) == 2


def test_without_an_embedding_the_request_goes_to_a_pod(start_gateway: StartGateway) -> None:
    with semantic(start_gateway) as (gateway, pod, letters):
        letters.status = 500
        assert said(post(gateway, CAPITAL)) == words(4)
        assert gateway.metric("forebay_gateway_semantic_lookups_total", result="failed") == 1
        assert len(pod.bodies) == 1
