"""What a client gets from the gateway when all is well."""

import json
import threading
from typing import Any

import httpx2
import pytest

from services.common.wire import Answer
from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.scripts import hello, hello_stream
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def data_of(response: httpx2.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_chat_is_answered_as_the_pod_answered_it(client: httpx2.Client) -> None:
    answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    assert answer.json()["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def test_a_stream_holds_only_what_the_client_asked_for(client: httpx2.Client) -> None:
    answer = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "forebay" not in answer.text, "the pod's notes are not the client's"
    chunks = data_of(answer)
    assert chunks[-1] == "[DONE]"
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[:-1]] == ["", "Hel", "lo", None]


def test_a_stream_ends_with_usage_where_the_client_asked_for_it(client: httpx2.Client) -> None:
    asked = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    chunks = data_of(client.post("/v1/chat/completions", json=asked))
    assert chunks[-2]["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def test_tokens_arrive_as_they_are_made(start_gateway: StartGateway) -> None:
    """The pod sends its second token only after the client has seen the first."""
    seen = threading.Event()

    def waiting(handler: Handler, body: dict[str, Any]) -> None:
        handler.start_stream()
        blocks = hello_stream(Answer.new("chat", body["model"]))
        for block in blocks[:2]:
            handler.send_piece(block)
        assert seen.wait(30)
        for block in blocks[2:]:
            handler.send_piece(block)
        handler.end_stream()

    with scripted_pod(waiting) as pod, start_gateway(pod).client() as client:
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
            text = ""
            for line in answer.iter_lines():
                text += line
                if '"Hel"' in line:
                    seen.set()
        assert text.endswith("[DONE]")


def test_the_pod_gets_the_gateways_fields_and_not_the_clients_salt(start_gateway: StartGateway) -> None:
    got: list[tuple[dict[str, str], dict[str, Any]]] = []

    def recording(handler: Handler, body: dict[str, Any]) -> None:
        got.append(({name.lower(): value for name, value in handler.headers.items()}, body))
        hello(handler, body)

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with scripted_pod(recording) as pod, start_gateway(pod).client() as client:
        client.post(
            "/v1/chat/completions",
            json={**CHAT, "cache_salt": "mine", "x_unknown": 7},
            headers={"X-Request-Id": "my-id", "traceparent": trace, "X-Forebay-Timeout": "5"},
        )
    headers, body = got[0]
    assert headers["x-request-id"] == "my-id"
    assert headers["traceparent"] == trace
    assert 0 < float(headers["x-forebay-timeout"]) <= 5
    assert "authorization" not in headers
    assert body["cache_salt"] not in ("mine", "")
    assert body["x_unknown"] == 7, "what another engine may understand is passed on"


@pytest.mark.parametrize(
    ("sent", "passed_on"),
    [
        ({"resume_token_ids": [1, 2]}, {}),
        ({"priority": -5}, {"priority": 0}),
        ({"priority": 5}, {"priority": 5}),
        ({"priority": None}, {"priority": None}),
        ({}, {}),
    ],
    ids=["resume", "overtake", "yield", "null", "nothing"],
)
def test_a_client_may_neither_resume_nor_overtake(
    start_gateway: StartGateway, sent: dict[str, Any], passed_on: dict[str, Any]
) -> None:
    got: list[dict[str, Any]] = []

    def recording(handler: Handler, body: dict[str, Any]) -> None:
        got.append(body)
        hello(handler, body)

    with scripted_pod(recording) as pod, start_gateway(pod).client() as client:
        assert client.post("/v1/chat/completions", json={**CHAT, **sent}).status_code == 200
    assert {name: got[0][name] for name in ("resume_token_ids", "priority") if name in got[0]} == passed_on


def test_the_request_id_comes_back_and_is_made_up_where_it_is_missing_or_unfit(client: httpx2.Client) -> None:
    ids = [
        client.get("/v1/models", headers=headers).headers["x-request-id"]
        for headers in ({"X-Request-Id": "my-id"}, {}, {"X-Request-Id": "spaces are not fit"})
    ]
    assert ids[0] == "my-id"
    assert ids[1] != ids[2]
    assert all(made.startswith("req-") for made in ids[1:])


def test_models_are_those_of_the_ready_pods(client: httpx2.Client) -> None:
    assert [row["id"] for row in client.get("/v1/models").json()["data"]] == ["m"]
    assert client.get("/v1/models/m").json()["id"] == "m"
    assert client.get("/v1/models/none").json()["error"]["code"] == "model_not_found"


class TestCache:
    def test_a_deterministic_answer_is_kept_and_replayed(self, client: httpx2.Client) -> None:
        asked = {**CHAT, "temperature": 0}
        first, second = (client.post("/v1/chat/completions", json=asked) for _ in range(2))
        assert (first.headers["x-forebay-cache"], second.headers["x-forebay-cache"]) == ("miss", "hit")
        assert second.json()["choices"] == first.json()["choices"]
        assert second.json()["usage"] == first.json()["usage"]
        assert second.json()["id"] != first.json()["id"]

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
    def test_a_stream_fills_the_cache_and_a_kept_answer_replays_as_a_stream(
        self, client: httpx2.Client, path: str
    ) -> None:
        asked: dict[str, Any] = {"model": "m", "seed": 7}
        asked |= {"messages": CHAT["messages"]} if "chat" in path else {"prompt": "hi"}
        streamed = client.post(path, json={**asked, "stream": True})
        whole = client.post(path, json=asked)
        again = client.post(path, json={**asked, "stream": True, "stream_options": {"include_usage": True}})
        caches = [answer.headers["x-forebay-cache"] for answer in (streamed, whole, again)]
        assert caches == ["miss", "hit", "hit"]
        choice = whole.json()["choices"][0]
        assert (choice.get("text") or choice["message"]["content"]) == "Hello"
        chunks = data_of(again)
        parts = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"]]
        assert "".join(part.get("text") or part.get("delta", {}).get("content") or "" for part in parts) == "Hello"
        assert parts[-1]["finish_reason"] == "stop"
        assert chunks[-2]["usage"]["completion_tokens"] == 2
        assert chunks[-1] == "[DONE]"

    @pytest.mark.parametrize(
        ("fields", "headers"),
        [
            ({}, {}),
            ({"temperature": 0.5}, {}),
            ({"temperature": 0, "n": 2}, {}),
            ({"temperature": 0, "logprobs": True}, {}),
            ({"temperature": 0}, {"Cache-Control": "no-cache"}),
            ({"temperature": 0}, {"Cache-Control": "no-store"}),
        ],
        ids=["sampled", "warm", "several", "logprobs", "no-cache", "no-store"],
    )
    def test_what_may_not_be_cached_bypasses_it(
        self, client: httpx2.Client, fields: dict[str, Any], headers: dict[str, str]
    ) -> None:
        for _ in range(2):
            answer = client.post("/v1/chat/completions", json={**CHAT, **fields}, headers=headers)
            assert answer.headers["x-forebay-cache"] == "bypass"

    def test_a_stream_stays_one_however_often_it_is_asked_for(self, client: httpx2.Client) -> None:
        """What lies ready is given whole, before anything is known of how it was asked for."""
        body = {**CHAT, "stream": True, "temperature": 0, "messages": [{"role": "user", "content": "again and again"}]}
        answers = [client.post("/v1/chat/completions", json=body) for _ in range(4)]
        assert [answer.headers["x-forebay-cache"] for answer in answers] == ["miss", "hit", "hit", "hit"]
        assert all(answer.headers["content-type"].startswith("text/event-stream") for answer in answers)
        assert all(data_of(answer)[-1] == "[DONE]" for answer in answers)


class TestLength:
    def test_what_names_no_length_gets_the_settings_and_as_text_completion_openais(
        self, start_gateway: StartGateway
    ) -> None:
        got: list[int] = []

        def recording(handler: Handler, body: dict[str, Any]) -> None:
            got.append(body["max_tokens"])
            hello(handler, body)

        text = {"model": "m", "prompt": "hi"}
        with scripted_pod(recording) as pod:
            for setting in (200, 7):
                with start_gateway(pod, default_max_tokens=setting).client() as client:
                    client.post("/v1/chat/completions", json=CHAT)
                    client.post("/v1/completions", json=text)
                    client.post("/v1/completions", json={**text, "max_tokens": 50})
        assert got == [200, 16, 50, 7, 7, 50]


class TestGuideRoutes:
    def test_generate_asks_the_prompt_and_gives_the_response(self, start_gateway: StartGateway) -> None:
        got: list[dict[str, Any]] = []

        def recording(handler: Handler, body: dict[str, Any]) -> None:
            got.append(body)
            hello(handler, body)

        with scripted_pod(recording) as pod, start_gateway(pod).client() as client:
            answer = client.post("/generate", json={"prompt": "hi", "max_length": 9})
        assert answer.json() == {"response": "Hello"}
        assert (got[0]["messages"], got[0]["max_tokens"]) == ([{"role": "user", "content": "hi"}], 9)

    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_stream_sends_the_text_of_each_token(self, client: httpx2.Client, method: str) -> None:
        values = {"params": {"prompt": "hi", "max_length": "9"}} if method == "GET" else {"json": {"prompt": "hi"}}
        answer = client.request(method, "/stream", **values)
        assert answer.text == "data: Hel\n\ndata: lo\n\ndata: [DONE]\n\n"

    def test_cache_answers_in_plain_text_and_from_the_cache_the_second_time(self, client: httpx2.Client) -> None:
        first, second = (client.get("/cache", params={"q": "what is a forebay?"}) for _ in range(2))
        assert first.text == second.text == "Hello"
        assert (first.headers["x-forebay-cache"], second.headers["x-forebay-cache"]) == ("miss", "hit")

    @pytest.mark.parametrize("path", ["/stream", "/cache", "/dynamic"])
    def test_head_computes_nothing(self, client: httpx2.Client, path: str) -> None:
        answer = client.head(path, params={"prompt": "hi"})
        assert answer.status_code == 405
        assert "GET" in answer.headers["allow"]

    def test_dynamic_loads_a_model_by_name_and_answers_with_it(self, client: httpx2.Client) -> None:
        assert client.get("/dynamic", params={"model": "m"}).json() == {"model": "m", "status": "loaded"}
        answer = client.get("/dynamic", params={"model": "m", "prompt": "hi"})
        assert answer.json() == {"model": "m", "response": "Hello"}
        assert client.get("/dynamic", params={"model": "none"}).status_code == 404

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "prompt"),
            ({"prompt": ""}, "prompt"),
            ({"prompt": 5}, "prompt"),
            ({"prompt": "hi", "max_length": 0}, "max_length"),
            ({"promt": "hi", "prompt": "hi"}, "promt"),
        ],
    )
    def test_a_wrong_field_is_named(self, client: httpx2.Client, body: dict[str, Any], field: str) -> None:
        answer = client.post("/generate", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field
