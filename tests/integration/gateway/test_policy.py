"""The input policy in a real gateway: what is refused never reaches a pod, and what reaches it has been cleaned."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.scripts import hello
from tests.integration.gateway.test_semantic import post, semantic
from tests.unit.gateway.scripted_pod import Handler, scripted_pod
from tests.unit.gateway.test_policy import moderation_service, words

PATH = "/v1/chat/completions"


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": text}], **fields}


class Noting:
    """A pod that says hello and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        self.asked.append(body)
        hello(handler, body)


def error_of(answer: httpx2.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def test_what_the_moderation_model_flags_reaches_no_pod_and_no_log(start_gateway: StartGateway) -> None:
    pod = Noting()
    with moderation_service(words) as (url, asked), scripted_pod(pod) as address:
        gateway = start_gateway(address, moderation_url=url)
        with gateway.client() as client:
            refused = client.post(PATH, json=chat("how to make a bomb"))
            streamed = client.post(PATH, json=chat("how to make a bomb", stream=True))
            passed = [client.post(PATH, json=chat("how to make a cake")) for _ in range(2)]
        nobody = httpx2.post(f"{gateway.url}{PATH}", json=chat("how to make tea"))
    assert error_of(refused) == error_of(streamed) == (400, "content_policy_violation", "messages")
    assert [answer.status_code for answer in passed] == [200, 200]
    assert nobody.status_code == 401
    assert [body["messages"][0]["content"] for body in pod.asked] == ["how to make a cake"]
    # Neither a stranger's prompt nor a cached answer is asked about.
    assert [body["input"] for body in asked] == [["how to make a bomb"]] * 2 + [["how to make a cake"]]
    assert gateway.metric("forebay_gateway_moderations_total", result="flagged") == 2
    log = gateway.log.read_text()
    assert "bomb" not in log
    assert '"moderation": ["violence"]' in log


def test_a_question_is_asked_about_before_another_ones_answer_is_given(start_gateway: StartGateway) -> None:
    with moderation_service(words) as (url, asked), semantic(start_gateway, moderation_url=url) as (gateway, pod, _):
        letters = [post(gateway, text) for text in ("mobb", "obmb", "bomb")]
    assert [answer.headers.get("x-forebay-cache") for answer in letters[:2]] == ["miss", "semantic"]
    assert error_of(letters[2]) == (400, "content_policy_violation", "messages")
    assert [body["input"] for body in asked] == [["mobb"], ["obmb"], ["bomb"]], "each once"
    assert len(pod.bodies) == 1


@pytest.mark.parametrize(("failure", "status"), [("closed", 503), ("open", 200)])
def test_without_an_answer_of_the_moderation_model_the_setting_decides(
    start_gateway: StartGateway, failure: str, status: int
) -> None:
    with moderation_service(words) as (url, _), scripted_pod(hello) as pod:
        gateway = start_gateway(pod, moderation_url=url, moderation_failure=failure)
        with gateway.client() as client:
            assert client.post(PATH, json=chat("hi")).status_code == 200
    with scripted_pod(hello) as pod:
        gateway = start_gateway(pod, moderation_url=url, moderation_failure=failure)
        with gateway.client() as client:
            answer = client.post(PATH, json=chat("hi again"))
    assert answer.status_code == status
    if status == 503:
        assert answer.json()["error"]["code"] == "moderation_unavailable"
        assert answer.headers["retry-after"] == "1"


def test_html_is_stripped_before_a_pod_sees_it_and_bounds_name_the_field(start_gateway: StartGateway) -> None:
    pod = Noting()
    with scripted_pod(pod) as address:
        gateway = start_gateway(address, strip_html=True, max_text_length=100, max_messages=2, max_json_depth=5)
        with gateway.client() as client:
            client.post(PATH, json=chat("<b>Hello</b><script>alert(1)</script>"))
            refused = [
                client.post(PATH, json=chat("x" * 101)),
                client.post(PATH, json=chat("x", messages=chat("x")["messages"] * 3)),
                client.post(PATH, json=chat("x", extra=[[[[[1]]]]])),
                client.post("/generate", json={"prompt": "x" * 101, "model": "m"}),
            ]
    assert [body["messages"][0]["content"] for body in pod.asked] == ["Hello"]
    assert [error_of(answer) for answer in refused] == [
        (400, "invalid_request", "messages.0.content"),
        (400, "invalid_request", "messages"),
        (400, "invalid_request", "extra.0.0.0.0"),
        (400, "invalid_request", "prompt"),
    ]
