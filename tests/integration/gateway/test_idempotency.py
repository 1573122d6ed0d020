"""A generation that is sent again under the same key is not generated again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.integration.gateway.conftest import RunningGateway, StartGateway, until
from tests.integration.gateway.counting import Counting, ask, said, words
from tests.integration.gateway.scripts import refuse
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

CHAT = "/v1/chat/completions"


@pytest.fixture
def crowd() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(10) as pool:
        yield pool


def drawn(count: int, *, stream: bool) -> dict[str, Any]:
    """A request that nothing but its key makes the same as another: it is sampled without a seed."""
    return {**ask(count, stream=stream), "temperature": 1.0}


def post(
    gateway: RunningGateway, body: dict[str, Any], name: str = "order-1", key: str | None = None
) -> httpx2.Response:
    with gateway.client(key) as client:
        return client.post(CHAT, json=body, headers={"Idempotency-Key": name})


@pytest.mark.parametrize("stream", [False, True])
def test_what_has_ended_is_answered_with_the_same_bytes(start_gateway: StartGateway, *, stream: bool) -> None:
    pod = Counting()
    with scripted_pod(pod) as url:
        first, second = start_gateway(url), start_gateway(url)
        once = post(first, drawn(5, stream=stream))
        again = post(second, drawn(5, stream=stream))
        assert said(once) == words(5)
        assert again.text == once.text
        assert "idempotency-replayed" not in once.headers
        assert again.headers["idempotency-replayed"] == "true"
        assert again.headers["x-forebay-cache"] == "replayed"
        assert len(pod.bodies) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_what_still_runs_is_waited_for(start_gateway: StartGateway, crowd: ThreadPoolExecutor, *, stream: bool) -> None:
    pod = Counting(pause_at=3)
    with scripted_pod(pod) as url:
        first, second = start_gateway(url), start_gateway(url)
        running = crowd.submit(post, first, drawn(5, stream=stream))
        assert pod.waiting.wait(30)
        others = [crowd.submit(post, (first, second)[n % 2], drawn(5, stream=stream)) for n in range(6)]
        until(lambda: not any(one.done() for one in others))
        pod.go_on.set()
        text = running.result(60).text
        assert [one.result(60).text for one in others] == [text] * 6
        assert len(pod.bodies) == 1


def test_another_body_under_the_key_is_409(start_gateway: StartGateway) -> None:
    pod = Counting()
    with scripted_pod(pod) as url:
        gateway = start_gateway(url)
        post(gateway, drawn(5, stream=False))
        answer = post(gateway, drawn(6, stream=False))
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_key_reused")
        assert answer.json()["error"]["param"] == "Idempotency-Key"
        assert post(gateway, drawn(6, stream=False), "order-2").status_code == 200


def test_the_order_of_a_bodys_fields_does_not_matter(start_gateway: StartGateway) -> None:
    pod = Counting()
    with scripted_pod(pod) as url:
        gateway = start_gateway(url)
        post(gateway, drawn(5, stream=False))
        assert post(gateway, dict(reversed(drawn(5, stream=False).items()))).headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_key_must_have_the_form_of_one(start_gateway: StartGateway, name: str) -> None:
    with scripted_pod(Counting()) as url:
        answer = post(start_gateway(url), drawn(2, stream=False), name)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_a_failure_is_not_kept(start_gateway: StartGateway) -> None:
    pod, failing = Counting(), [True]

    def script(handler: Handler, body: dict[str, Any]) -> None:
        (refuse(500, "broken") if failing else pod)(handler, body)

    with scripted_pod(script) as url:
        gateway = start_gateway(url)
        assert post(gateway, drawn(5, stream=False)).status_code == 500
        failing.clear()
        until(lambda: gateway.ready)
        answer = post(gateway, drawn(5, stream=False))
        assert said(answer) == words(5)
        assert "idempotency-replayed" not in answer.headers
        assert post(gateway, drawn(5, stream=False)).headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_cut_by_a_hang_up_is_brought_to_its_end_by_the_retry(
    start_gateway: StartGateway, *, stream: bool
) -> None:
    pod = Counting(pause_at=4)
    with scripted_pod(pod) as url:
        first, second = start_gateway(url), start_gateway(url)
        with pytest.raises(httpx2.ReadTimeout), first.client() as client:
            client.post(CHAT, json=drawn(6, stream=stream), headers={"Idempotency-Key": "cut"}, timeout=0.5)
        assert pod.left.wait(30)
        pod.go_on.set()
        assert said(post(second, drawn(6, stream=stream), "cut")) == words(6)
        assert pod.resumed == ([[1, 2, 3]] if stream else [])
        assert pod.bodies[0].get("seed") == pod.bodies[1].get("seed") if stream else True
        again = post(first, drawn(6, stream=stream), "cut")
        assert said(again) == words(6)
        assert again.headers["idempotency-replayed"] == "true"
        assert len(pod.bodies) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_what_died_with_its_gateway_is_brought_to_its_end_by_the_retry(
    start_gateway: StartGateway, crowd: ThreadPoolExecutor, *, stream: bool
) -> None:
    pod = Counting(pause_at=4)
    with scripted_pod(pod) as url:
        first, second = start_gateway(url), start_gateway(url)
        running = crowd.submit(post, first, drawn(6, stream=stream))
        assert pod.waiting.wait(30)
        attached = crowd.submit(post, second, drawn(6, stream=stream))
        first.kill()
        with pytest.raises(httpx2.HTTPError):
            running.result(60)
        pod.go_on.set()
        assert said(attached.result(60)) == words(6)
        assert said(post(second, drawn(6, stream=stream))) == words(6)
        assert len(pod.bodies) == 2


def test_what_was_cut_of_several_choices_is_made_anew(start_gateway: StartGateway) -> None:
    pod = Counting(pause_at=4)
    with scripted_pod(pod) as url:
        gateway = start_gateway(url)
        body = {**drawn(6, stream=True), "n": 2}
        with pytest.raises(httpx2.ReadTimeout), gateway.client() as client:
            client.post(CHAT, json=body, headers={"Idempotency-Key": "cut"}, timeout=0.5)
        assert pod.left.wait(30)
        pod.go_on.set()
        once, again = post(gateway, body, "cut"), post(gateway, body, "cut")
        assert said(once) == words(6)
        assert again.text == once.text
        assert len(pod.bodies) == 2


def test_the_key_of_another_tenant_is_another(start_gateway: StartGateway) -> None:
    pod = Counting()
    with scripted_pod(pod) as url:
        gateway = start_gateway(url)
        post(gateway, drawn(5, stream=False))
        answer = post(gateway, drawn(6, stream=False), key=gateway.another_tenants_key())
        assert answer.status_code == 200
        assert len(pod.bodies) == 2


def test_while_redis_is_down_the_header_does_nothing(start_gateway: StartGateway) -> None:
    pod = Counting()
    with scripted_pod(pod) as url:
        gateway = start_gateway(url, redis_url="redis://127.0.0.1:1/0")
        assert [post(gateway, drawn(5, stream=True)).status_code for _ in range(2)] == [200, 200]
        assert len(pod.bodies) == 2
