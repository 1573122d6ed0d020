"""`/admin/models`: what an operator sees of the models, their pods and what the settings say of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tests.integration.gateway.conftest import RunningGateway, StartGateway, until
from tests.integration.gateway.scripts import hello, refuse
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

Models = Callable[..., httpx2.Response]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def operator(gateway: RunningGateway) -> Models:
    """Asks as the platform's admin."""
    log_in = {"username": "admin", "password": gateway.admin_password}
    token = httpx2.post(f"{gateway.url}/login", json=log_in).json()["access_token"]

    def ask(name: str = "") -> httpx2.Response:
        path = f"/admin/models/{name}" if name else "/admin/models"
        return httpx2.get(gateway.url + path, headers={"Authorization": f"Bearer {token}"}, timeout=10)

    return ask


def by_name(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {row["id"]: row for row in answer.json()["data"]}


def test_what_pods_and_settings_say_of_each_model(start_gateway: StartGateway) -> None:
    loading = threading.Event()
    with scripted_pod(hello) as pod, scripted_pod(hello, model="large", loaded=loading) as other:
        gateway = start_gateway(
            pod,
            other,
            expected_models="later",
            aliases=json.dumps({"prod": {"m": 3, "typo": 1}}),
            fallbacks=json.dumps({"large": ["m"]}),
            prices=json.dumps({"m": {"input": 1.5, "cached_input": 0.5, "output": 6}}),
        )
        ask = operator(gateway)
        until(lambda: by_name(ask())["large"]["phase"] == "loading: pack")
        models = by_name(ask())
    assert list(models) == ["large", "later", "m", "typo"]
    assert models["m"] == {
        "id": "m",
        "object": "model",
        "ready_pods": 1,
        "phase": None,
        "ready_in": 0,
        "queue_seconds": 0,
        "known": True,
        "pods": [
            {
                "replica": pod.removeprefix("http://"),
                "ready": True,
                "phase": None,
                "down_seconds": None,
                "circuit": "closed",
                "slow": False,
                "inflight": 0,
                "waiting": None,
                "running": None,
                "kv_cache_usage": None,
            }
        ],
        "aliases": {"prod": 0.75},
        "fallbacks": [],
        "fallback_for": ["large"],
        "price": {"prompt_micros": 1_500_000, "cached_prompt_micros": 500_000, "completion_micros": 6_000_000},
    }
    (large,) = models["large"]["pods"]
    assert (large["ready"], large["phase"]) == (False, "pack")
    assert large["down_seconds"] > 0
    assert (models["large"]["ready_pods"], models["large"]["fallbacks"]) == (0, ["m"])
    assert models["large"]["ready_in"] > 0
    assert (models["later"]["known"], models["later"]["phase"], models["later"]["pods"]) == (True, "no pod", [])
    assert (models["typo"]["known"], models["typo"]["aliases"]) == (False, {"prod": 0.25})


def test_a_pod_whose_circuit_is_open(start_gateway: StartGateway) -> None:
    with scripted_pod(refuse(500, "internal_error")) as pod:
        gateway = start_gateway(pod, breaker_failures=1, breaker_pause=60)
        with gateway.client() as client:
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 500
        model = operator(gateway)("m").json()
    (found,) = model["pods"]
    assert (found["ready"], found["circuit"], model["phase"]) == (True, "open", "circuit open")


def test_the_load_of_a_pod(start_gateway: StartGateway) -> None:
    reached, release = threading.Event(), threading.Event()

    def slow(handler: Handler, body: dict[str, Any]) -> None:
        reached.set()
        release.wait(30)
        counts = {"num_requests_waiting": 3, "num_requests_running": 8, "kv_cache_usage_perc": 0.5}
        handler.answer(200, {"choices": []}, {"endpoint-load-metrics": f"JSON {json.dumps({'named_metrics': counts})}"})

    with scripted_pod(slow) as pod:
        gateway = start_gateway(pod)
        ask = operator(gateway)

        def call() -> None:
            with gateway.client() as client:
                client.post("/v1/chat/completions", json=CHAT)

        caller = threading.Thread(target=call)
        caller.start()
        assert reached.wait(30)
        assert ask("m").json()["pods"][0]["inflight"] == 1
        release.set()
        caller.join()
        (found,) = ask("m").json()["pods"]
    assert found["inflight"] == 0
    assert (found["waiting"], found["running"], found["kv_cache_usage"]) == (3, 8, 0.5)


@pytest.mark.parametrize("name", ["nobody", "a/b"])
def test_a_model_that_nobody_names_is_not_there(gateway: RunningGateway, name: str) -> None:
    assert operator(gateway)(name).status_code == 404
