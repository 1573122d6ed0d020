"""The watch of EndpointSlices, against an API server that speaks the real protocol."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.gateway.upstreams.endpoint import Endpoint
from services.gateway.upstreams.slices import SELECTOR, SliceWatch, endpoints_of, open_watch
from tests.integration.gateway.conftest import until
from tests.unit.gateway.kubernetes_api import KubernetesApi, endpoint, endpoint_slice, kubernetes_api


class Watched:
    """A watch whose pods can be awaited."""

    def __init__(self, watch: SliceWatch) -> None:
        self.watch = watch
        self._changed = threading.Condition()
        watch.start(self._change)

    def _change(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def urls(self) -> list[str]:
        return sorted(one.url.removeprefix("http://").removesuffix(":8000") for one in self.watch.endpoints())

    def await_urls(self, *urls: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.urls() == sorted(urls), timeout=20), self.urls()


Begin = Callable[..., Watched]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    with kubernetes_api(tmp_path) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def watched(api: KubernetesApi) -> Iterator[Begin]:
    opened: list[Watched] = []

    def begin(entry: str = "http://models") -> Watched:
        opened.append(Watched(open_watch(entry, api.account)))
        return opened[-1]

    yield begin
    for one in opened:
        one.watch.stop()


def test_pods_that_are_there_that_come_and_that_go(api: KubernetesApi, watched: Begin) -> None:
    api.put(endpoint_slice("a", endpoint("10.0.0.1")))
    seen = watched()
    seen.await_urls("10.0.0.1")
    api.put(endpoint_slice("a", endpoint("10.0.0.1"), endpoint("10.0.0.2")))
    seen.await_urls("10.0.0.1", "10.0.0.2")
    api.put(endpoint_slice("b", endpoint("10.0.0.3")))
    seen.await_urls("10.0.0.1", "10.0.0.2", "10.0.0.3")
    api.put(endpoint_slice("a", endpoint("10.0.0.2")))
    seen.await_urls("10.0.0.2", "10.0.0.3")
    api.delete("b")
    seen.await_urls("10.0.0.2")


def test_only_slices_of_models_in_the_namespace_are_looked_at(api: KubernetesApi, watched: Begin) -> None:
    scraped = endpoint_slice("metrics", endpoint("10.0.0.8"))
    scraped["metadata"]["labels"]["forebay.dev/scrape"] = "metrics"
    other = endpoint_slice("other", endpoint("10.0.0.9"))
    other["metadata"]["labels"] = {"kubernetes.io/service-name": "other"}
    elsewhere = endpoint_slice("elsewhere", endpoint("10.0.0.7"), namespace="elsewhere")
    for one in (scraped, other, elsewhere, endpoint_slice("a", endpoint("10.0.0.1"))):
        api.put(one)
    seen = watched()
    seen.await_urls("10.0.0.1")
    for one in (scraped, other, elsewhere, endpoint_slice("a", endpoint("10.0.0.2"))):
        api.put(one)
    seen.await_urls("10.0.0.2")
    assert {request["labelSelector"] for request in api.requests} == {SELECTOR}


def test_while_the_api_server_is_away_the_last_picture_stands(
    api: KubernetesApi, watched: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(endpoint_slice("a", endpoint("10.0.0.1")))
    seen = watched()
    seen.await_urls("10.0.0.1")
    api.await_request(watch="true")
    with caplog.at_level(logging.INFO, "forebay.upstreams"):
        api.stop()
        assert seen.urls() == ["10.0.0.1"]
        api.put(endpoint_slice("a", endpoint("10.0.0.2")))
        api.forget()
        api.start()
        seen.await_urls("10.0.0.2")
    api.put(endpoint_slice("a", endpoint("10.0.0.3")))
    seen.await_urls("10.0.0.3")
    assert sum("not watched" in line.message for line in caplog.records) <= 1


def test_a_reset_connection_costs_a_new_list_and_nothing_else(api: KubernetesApi, watched: Begin) -> None:
    api.put(endpoint_slice("a", endpoint("10.0.0.1")))
    seen = watched()
    seen.await_urls("10.0.0.1")
    api.await_request(watch="true")
    api.reset_connections()
    assert seen.urls() == ["10.0.0.1"]
    api.put(endpoint_slice("a", endpoint("10.0.0.2")))
    seen.await_urls("10.0.0.2")


@pytest.mark.parametrize("status", ["in the stream", "instead of it"])
def test_a_version_that_is_gone_has_all_listed_anew(
    api: KubernetesApi, watched: Begin, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(endpoint_slice("a", endpoint("10.0.0.1")))
    seen = watched()
    seen.await_urls("10.0.0.1")
    api.await_request(watch="true")
    if status == "instead of it":
        api.end_watches()  # begins the next one with the version that it had
    api.put(endpoint_slice("b", endpoint("10.0.0.2")))
    api.forget()
    seen.await_urls("10.0.0.1", "10.0.0.2")
    api.delete("a")
    seen.await_urls("10.0.0.2")
    assert len([request for request in api.requests if "watch" not in request]) <= 2
    assert not caplog.records, "that is no failure"


def test_a_bookmark_moves_the_version_on(api: KubernetesApi, watched: Begin) -> None:
    seen = watched()
    api.await_request(watch="true", allowWatchBookmarks="true")
    version = api.bookmark()
    api.put(endpoint_slice("a", endpoint("10.0.0.1")))
    seen.await_urls("10.0.0.1")
    later = api.bookmark()
    api.end_watches()
    api.await_request(watch="true", resourceVersion=later)
    assert int(later) > int(version)
    assert len([request for request in api.requests if "watch" not in request]) == 1


def test_it_is_known_when_kubernetes_was_last_heard(api: KubernetesApi, watched: Begin) -> None:
    watch = watched().watch
    api.await_request(watch="true")

    def heard_by(act: Callable[[], object]) -> None:
        since = time.time()
        act()
        until(lambda: watch.heard_at >= since)

    heard_by(api.bookmark)
    heard_by(lambda: api.put(endpoint_slice("a", endpoint("10.0.0.1"))))
    heard_by(api.end_watches)
    api.stop()
    left = time.time()
    api.let_in("token-2")  # so that the first try is refused
    api.token = "another"
    api.start()
    api.await_refusals(2)
    assert watch.heard_at < left, "a server that does not let it in tells it nothing"
    heard_by(lambda: api.let_in("token-3"))


def test_a_token_that_the_kubelet_renews_is_read_anew(api: KubernetesApi, watched: Begin) -> None:
    api.put(endpoint_slice("a", endpoint("10.0.0.1")))
    seen = watched()
    seen.await_urls("10.0.0.1")
    api.await_request(watch="true")
    api.let_in("token-2")
    api.reset_connections()
    api.put(endpoint_slice("a", endpoint("10.0.0.2")))
    seen.await_urls("10.0.0.2")
    assert api.token == "token-2"


def test_who_is_not_let_in_says_so_once_and_tries_again(
    api: KubernetesApi, watched: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(endpoint_slice("a", endpoint("10.0.0.1")))
    api.token = "another"
    with caplog.at_level(logging.INFO, "forebay.upstreams"):
        seen = watched()
        api.await_refusals(2)
        api.let_in("another")
        seen.await_urls("10.0.0.1")
    lines = [line for line in caplog.records if "not watched" in line.message]
    assert len(lines) == 1
    assert "401" in lines[0].reason  # type: ignore[attr-defined]
    assert "token-1" not in caplog.text


class TestEntry:
    def test_without_a_namespace_it_is_the_pods_own(self, api: KubernetesApi, watched: Begin) -> None:
        api.put(endpoint_slice("a", endpoint("10.0.0.1")))
        watched("http://").await_urls("10.0.0.1")

    def test_port_and_selector_may_be_named(self, api: KubernetesApi, watched: Begin) -> None:
        api.put(endpoint_slice("a", endpoint("10.0.0.1")))
        one = endpoint_slice("b", endpoint("10.0.0.2"))
        one["metadata"]["labels"] = {"engine": "vllm"}
        api.put(one)
        watched("http://models:9000?labelSelector=engine%3Dvllm").await_urls("10.0.0.2:9000")

    def test_no_namespace_outside_a_pod_and_no_cluster_are_said_in_a_sentence(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(ValueError, match="names no namespace"):
            open_watch("http://", tmp_path / "none")
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        with pytest.raises(ValueError, match="No cluster to watch"):
            open_watch("http://models", tmp_path)


class TestConditions:
    def of(self, one: dict[str, Any], port: int | None = None) -> list[Endpoint]:
        return endpoints_of(one, "http", port)

    def test_a_pod_that_is_not_ready_is_known_and_not_taken(self) -> None:
        one = endpoint_slice("a", endpoint("10.0.0.1"), endpoint("10.0.0.2", ready=False, serving=False))
        assert self.of(one) == [
            Endpoint("http://10.0.0.1:8000", True, "small"),
            Endpoint("http://10.0.0.2:8000", False, "small"),
        ]

    def test_a_service_that_publishes_pods_before_they_are_ready_does_not_make_them_so(self) -> None:
        assert not self.of(endpoint_slice("a", endpoint("10.0.0.1", serving=False)))[0].ready

    def test_a_pod_that_terminates_is_not_named_whether_it_still_serves_or_not(self) -> None:
        for serving in (True, False):
            one = endpoint_slice("a", endpoint("10.0.0.1", ready=False, serving=serving, terminating=True))
            assert self.of(one) == []

    def test_without_conditions_it_is_ready(self) -> None:
        assert self.of(endpoint_slice("a", {"addresses": ["10.0.0.1", "10.0.0.2"]})) == [
            Endpoint("http://10.0.0.1:8000", True, "small")
        ]

    def test_the_port_is_the_one_named_http_else_the_first(self) -> None:
        ports = [{"name": "x", "port": 7}, {"name": "y", "port": 8}]
        assert self.of(endpoint_slice("a", endpoint("10.0.0.1"), ports=ports))[0].url == "http://10.0.0.1:7"
        assert self.of(endpoint_slice("a", endpoint("10.0.0.1")), 9)[0].url == "http://10.0.0.1:9"

    def test_slices_without_anything_to_talk_to_have_no_pods(self) -> None:
        assert self.of(endpoint_slice("a", endpoint("10.0.0.1"), ports=None)) == []
        assert self.of(endpoint_slice("a", endpoints=None)) == []
        assert self.of(endpoint_slice("a", endpoint("pods.example"), addressType="FQDN")) == []
        udp = [{"name": "http", "port": 8000, "protocol": "UDP"}]
        assert self.of(endpoint_slice("a", endpoint("10.0.0.1"), ports=udp)) == []

    def test_ipv6_addresses_get_brackets(self) -> None:
        one = endpoint_slice("a", endpoint("fd00::1"), addressType="IPv6")
        assert self.of(one)[0].url == "http://[fd00::1]:8000"
