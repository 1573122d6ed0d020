"""Canaries, fallbacks, and the header that says where a request went and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from services.common.wire import Answer, Usage
from services.gateway.route import read
from tests.integration.gateway.conftest import RunningGateway, StartGateway, until
from tests.integration.gateway.scripts import hello
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

WEIGHTS = {"a": 70, "b": 30}


def model_name(handler: Handler, body: dict[str, Any]) -> None:
    """Answers with the name of the model that was asked."""
    if body.get("stream"):
        hello(handler, body)
    else:
        handler.answer(200, Answer.new("chat", body["model"]).whole([(body["model"], "stop")], Usage(5, 1)))


@pytest.fixture
def pods() -> Iterator[tuple[str, str]]:
    with scripted_pod(model_name, model="a") as first, scripted_pod(model_name, model="b") as second:
        yield first, second


def chat(gateway: RunningGateway, text: str = "hi", *, headers: dict[str, str] | None = None, **more: Any) -> Any:
    body = {"model": "prod", "messages": [{"role": "user", "content": text}], **more}
    with gateway.client() as client:
        return client.post("/v1/chat/completions", json=body, headers=headers)


def route(answer: httpx2.Response) -> dict[str, str]:
    return read(answer.headers["x-forebay-route"])


@pytest.fixture
def canary(start_gateway: StartGateway, pods: tuple[str, str]) -> RunningGateway:
    gateway = start_gateway(*pods, aliases=json.dumps({"prod": WEIGHTS}))
    for model in WEIGHTS:
        until(lambda model=model: gateway.metric("forebay_gateway_upstreams_ready", model=model) == 1)  # type: ignore[misc]
    return gateway


class TestAliases:
    def test_conversations_are_shared_out_by_weight_and_stay_where_they_are(self, canary: RunningGateway) -> None:
        texts = [f"conversation {number}" for number in range(60)]
        first = {text: chat(canary, text).json()["model"] for text in texts}
        again = {text: chat(canary, text).json()["model"] for text in texts}
        assert first == again
        counted = Counter(first.values())
        assert 5 <= counted["b"] <= 31, "about 18 of 60"
        assert counted["a"] + counted["b"] == 60

    def test_a_session_stays_where_it_is_whatever_it_says(self, canary: RunningGateway) -> None:
        headers = {"X-Forebay-Session": "one of many"}
        assert len({chat(canary, str(number), headers=headers).json()["model"] for number in range(20)}) == 1

    def test_the_answer_names_the_model_and_the_route_what_was_asked(self, canary: RunningGateway) -> None:
        answer = chat(canary)
        assert answer.json()["model"] in WEIGHTS
        assert answer.json()["choices"][0]["message"]["content"] == answer.json()["model"]
        assert (route(answer)["model"], route(answer)["asked"]) == (answer.json()["model"], "prod")

    def test_it_is_listed_with_what_it_stands_for(self, canary: RunningGateway) -> None:
        with canary.client() as client:
            rows = {row["id"]: row for row in client.get("/v1/models").json()["data"]}
            assert set(rows) == {"a", "b", "prod"}
            assert rows["prod"]["aliased_models"] == WEIGHTS
            assert client.get("/v1/models/prod").json() == rows["prod"]


class TestFallbacks:
    def test_another_model_answers_for_one_whose_pods_are_gone(
        self, start_gateway: StartGateway, pods: tuple[str, str]
    ) -> None:
        with scripted_pod(model_name, model="c") as gone:
            gateway = start_gateway(gone, pods[1], fallbacks=json.dumps({"c": ["b"]}))
            until(lambda: gateway.metric("forebay_gateway_upstreams_ready", model="c") == 1)
            assert chat(gateway, model="c").json()["model"] == "c"
        for stream in (False, True):
            answer = chat(gateway, model="c", stream=stream)
            assert answer.status_code == 200
            assert '"model":"b"' in answer.text.replace(" ", "")
            assert (route(answer)["model"], route(answer)["asked"]) == ("b", "c")

    def test_its_answer_is_not_kept_as_that_of_the_other(
        self, start_gateway: StartGateway, pods: tuple[str, str]
    ) -> None:
        gateway = start_gateway(pods[1], fallbacks=json.dumps({"c": ["b"]}), expected_models="c")
        answers = [chat(gateway, model="c", temperature=0) for _ in range(2)]
        assert [answer.headers["x-forebay-cache"] for answer in answers] == ["miss", "miss"]


class TestRoute:
    @pytest.mark.parametrize("stream", [False, True])
    def test_it_stands_in_the_header_and_in_the_log(
        self, start_gateway: StartGateway, pods: tuple[str, str], stream: bool
    ) -> None:
        gateway = start_gateway(pods[0])
        answer = chat(gateway, model="a", stream=stream)
        host = pods[0].removeprefix("http://")
        assert answer.headers["x-forebay-route"] == f"model=a; replica={host}; policy=only; cache=bypass; retries=0"
        until(lambda: len(logged(gateway)) == 1)
        assert logged(gateway) == [answer.headers["x-forebay-route"]]

    def test_a_cached_answer_came_from_no_pod(self, start_gateway: StartGateway, pods: tuple[str, str]) -> None:
        gateway = start_gateway(pods[0])
        first = chat(gateway, model="a", temperature=0)
        assert route(first)["cache"] == "miss"
        hit: Callable[[], httpx2.Response] = lambda: chat(gateway, model="a", temperature=0)  # noqa: E731
        until(lambda: hit().headers["x-forebay-route"] == "model=a; cache=hit; retries=0")


def logged(gateway: RunningGateway) -> list[str]:
    lines = [json.loads(line) for line in gateway.log.read_text().splitlines() if '"route": "model=' in line]
    return [line["route"] for line in lines]
