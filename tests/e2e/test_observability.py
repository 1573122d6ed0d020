"""Dashboards and alerts over the running stack: every panel shows something, and a fault is noticed."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from grafana.overview import overview
from grafana.panels import Json
from tests.e2e.prometheus import Prometheus
from tests.e2e.running import Stack, Up, wait_until_ready
from tests.ports import free_port

pytestmark = pytest.mark.requires("prometheus")

BOARD = overview()
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in BOARD["panels"]
    for target in panel["targets"]
]
PATIENCE = 180
"""Seconds until everything must have been seen; some twenty are usual."""


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), free_port(), stack)
    until(server.ready)
    yield server
    server.end()


@pytest.fixture(scope="module")
def narrow_key(stack: Stack) -> str:
    return key_for_one_request(stack)


def key_for_one_request(stack: Stack) -> str:
    """An API key that is good for one request a minute."""
    login = {"username": stack.admin_username, "password": stack.admin_password}
    _, answer = post(f"{stack.url}/login", login)
    token = answer["access_token"]
    _, made = post(f"{stack.url}/admin/keys", {"name": "narrow", "requests_per_minute": 1}, token)
    key: str = made["key"]
    return key


@pytest.fixture(scope="module")
def seen(stack: Stack, prometheus: Prometheus, narrow_key: str) -> dict[str, list[float]]:
    """What each query of the dashboard yields under traffic of all kinds, once all of them yield something."""
    found: dict[str, list[float]] = {}

    def everything() -> bool:
        traffic(stack, narrow_key)
        for parameter in QUERIES:
            (expression,) = parameter.values
            found[expression] = prometheus.query(filled(expression, prometheus))
        return all(values for expression, values in found.items() if "kube_" not in expression)

    # What is not there in the end is said by the test of its own.
    until(everything, must=False)
    return found


def traffic(stack: Stack, narrow_key: str) -> None:
    """An answer, a cached one, a stream, one that is refused by a limit, one that takes too long."""
    for stream in (False, False, True):
        assert chat(stack, stack.key, stream=stream)[0] == 200
    assert chat(stack, narrow_key)[0] in (200, 429)
    assert chat(stack, stack.key, headers={"X-Forebay-Timeout": "0.001"})[0] == 504


def test_every_target_is_read_and_says_what_it_is(prometheus: Prometheus, seen: object) -> None:
    targets = prometheus.targets()
    assert {target["health"] for target in targets} == {"up"}
    assert sorted(target["labels"]["component"] for target in targets) == ["gateway", "inference"]
    assert all(target["labels"]["namespace"] and target["labels"]["pod"] for target in targets)


@pytest.mark.parametrize("expression", QUERIES)
def test_a_query_of_the_dashboard_yields_data(expression: str, seen: dict[str, list[float]]) -> None:
    if "kube_" in expression:  # kube-state-metrics is not part of the stack; that it is valid was seen
        assert expression in seen
    else:
        assert seen[expression]


@pytest.mark.parametrize("variable", BOARD["templating"]["list"][1:], ids=lambda variable: variable["name"])
def test_a_variable_offers_a_choice(variable: Json, prometheus: Prometheus, seen: object) -> None:
    assert choices(variable, prometheus)


def test_a_stream_is_counted_once(prometheus: Prometheus, seen: object) -> None:
    """Gateway and pod both export its time to first token; the board shows what the gateway saw."""
    (at_gateway,) = prometheus.query('sum(gen_ai_server_time_to_first_token_seconds_count{component="gateway"})')
    (at_both,) = prometheus.query("sum(gen_ai_server_time_to_first_token_seconds_count)")
    assert 0 < at_gateway < at_both


def test_failures_use_up_the_error_budget(prometheus: Prometheus, seen: object) -> None:
    def burning() -> bool:
        return any(value > 1 for value in prometheus.query("namespace:forebay_availability:burnrate1h"))

    until(burning)


def test_an_unreachable_redis_is_noticed_and_so_is_its_return(stack: Stack, prometheus: Prometheus) -> None:
    """Stopped, not killed: `forebay up` starts a dead one again faster than a person could be told."""
    (cache,) = (row["pid"] for row in stack.up.status()["processes"] if row["role"] == "cache")

    def state() -> str:
        assert chat(stack, stack.key)[0] == 200  # requests flow all the time
        return prometheus.alerts().get("ForebayRedisDown", "quiet")

    assert state() == "quiet"
    os.kill(cache, signal.SIGSTOP)
    try:
        until(lambda: state() == "pending")
        until(lambda: state() == "firing")
    finally:
        os.kill(cache, signal.SIGCONT)
    until(lambda: state() == "quiet")


def test_a_429_counts_when_the_pods_are_full_but_not_when_the_caller_used_up_its_own(
    start_up: Callable[..., Up], tmp_path: Path
) -> None:
    stack = wait_until_ready(start_up(max_batch=1, max_queue=0))
    key = key_for_one_request(stack)
    prometheus = Prometheus(tmp_path, free_port(), stack)
    failed = "namespace:forebay_requests_failed:rate5m > 0"

    def own_limit() -> bool:
        assert chat(stack, key, headers={"Cache-Control": "no-cache"})[0] in (200, 429)
        return bool(prometheus.query("rate(forebay_gateway_refused_total[5m]) > 0"))

    def full() -> bool:
        with ThreadPoolExecutor(3) as clients:
            # Streams, as several of the same plain question may be answered once for all.
            asked = [clients.submit(chat, stack, stack.key, stream=True) for _ in range(3)]
        assert {answer.result()[0] for answer in asked} <= {200, 429}
        return bool(prometheus.query(failed))

    try:
        until(prometheus.ready)
        until(own_limit)
        assert prometheus.query(failed) == []
        until(full)
    finally:
        prometheus.end()


def filled(expression: str, prometheus: Prometheus) -> str:
    """The expression as Grafana sends it when every value of every variable is chosen."""
    expression = expression.replace("$__rate_interval", "20s")
    for variable in BOARD["templating"]["list"][1:]:
        values = choices(variable, prometheus) or ["nothing yet"]
        expression = expression.replace(f"${variable['name']}", "|".join(values))
    return expression


def choices(variable: Json, prometheus: Prometheus) -> list[str]:
    asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
    assert asked
    selector = re.sub(r"\$\w+", ".*", asked[1])
    return prometheus.label_values(selector, asked[2])


def chat(stack: Stack, key: str, *, stream: bool = False, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    body = {
        "model": stack.model,
        "messages": [{"role": "user", "content": "Name a river."}],
        "max_tokens": 4,
        "temperature": 0,
        "stream": stream,
    }
    # A stream of an answer that is in the cache has no first token.
    own = {"Cache-Control": "no-cache"} if stream or headers else {}
    return post(f"{stack.endpoint}/chat/completions", body, key, {**own, **(headers or {})})


def post(url: str, body: dict[str, Any], key: str = "", headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """The status, and the body where it is JSON."""
    own = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"} | (headers or {})
    request = urllib.request.Request(url, json.dumps(body).encode(), own)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            text, status = answer.read(), answer.status
    except urllib.error.HTTPError as error:
        with error:
            text, status = error.read(), error.code
    return status, json.loads(text) if text.startswith(b"{") else None


def until(holds: Callable[[], bool], *, must: bool = True) -> None:
    """Asks again and again until it holds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            assert not must, "it did not come to pass"
            return
        time.sleep(0.2)
