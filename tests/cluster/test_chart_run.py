"""The chart's CPU preset, run for real: what a user of the cluster would see."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cluster.conftest import REQUEST_TIMEOUT, STREAM_SECONDS
from tests.cluster.containers import Podman, wait_for
from tests.cluster.release import Release, processes_of, signal_all
from tests.cluster.watch import confinement
from tests.ports import free_port

MODEL = "smollm2-135m-instruct"
_numbers = count()


@pytest.fixture(scope="module")
def gateway(release: Release) -> Iterator[httpx2.Client]:
    """Asks the gateway as a client with the first key does; knows the model already."""
    pod = next(name for name in release.pods if name.endswith("-gateway"))
    with httpx2.Client(
        base_url=f"http://{release.address(pod)}:8080",
        headers={"Authorization": f"Bearer {release.api_key}"},
        timeout=REQUEST_TIMEOUT + 30,
    ) as client:
        wait_for(lambda: client.get("/v1/models").json()["data"], "a model behind the gateway", 60)
        yield client


def ask(client: httpx2.Client) -> httpx2.Response:
    """A short chat that no cache has an answer to."""
    question = f"Say the number {next(_numbers)}."
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "max_tokens": 8}
    return client.post("/v1/chat/completions", json=body)


def test_a_chat_through_the_gateway_answers(gateway: httpx2.Client) -> None:
    answer = ask(gateway)

    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_the_pod_of_helm_test_passes(release: Release, podman: Podman, gateway: httpx2.Client) -> None:
    pod = release.play(next(pod for pod in release.of_kind("Pod")))
    container = f"{pod}-smoke-test"

    status = podman("wait", container)

    assert status == "0", podman("logs", container)


def test_every_container_is_confined_as_the_chart_says(release: Release, podman: Podman) -> None:
    for pod in release.pods:
        for container in release.containers(pod):
            if podman.inspect(container)["State"]["Running"]:
                confinement(podman, container)


def test_a_second_pod_is_found_and_used_within_ten_seconds_and_one_that_stops_is_not_missed(
    release: Release, podman: Podman, gateway: httpx2.Client
) -> None:
    first = next(name for name in release.pods if name.endswith(f"-model-{MODEL}"))
    second = release.start("inference", "-2")
    release.wait_ready(second)
    ready = time.monotonic()
    with ThreadPoolExecutor(4) as clients:
        while not _served(podman, release.containers(second)[0]):
            assert time.monotonic() - ready < 10, "the second pod has got no request"
            assert all(answer.status_code == 200 for answer in clients.map(ask, [gateway] * 4))

        stopping = threading.Thread(target=release.stop, args=(first,))
        stopping.start()
        answers: list[httpx2.Response] = []
        while stopping.is_alive() or len(answers) < 12:
            answers += clients.map(ask, [gateway] * 4)
        stopping.join()

    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert ask(gateway).status_code == 200


def _served(podman: Podman, container: str) -> bool:
    return '"path": "/v1/chat/completions"' in podman("logs", container)


@pytest.mark.requires("nginx")
def test_a_stream_of_90_seconds_passes_the_ingress_and_a_request_past_the_limit_gets_504(
    release: Release, podman: Podman, gateway: httpx2.Client, tmp_path: Path
) -> None:
    port = free_port()
    container = release.containers(next(name for name in release.pods if "-model-" in name))[0]
    tokens = 400
    text = {"model": MODEL, "prompt": "1, 2, 3, 4, 5, 6, 7, 8,", "temperature": 0}
    proxy = f"http://127.0.0.1:{port}"
    with (
        ThreadPoolExecutor(1) as background,
        ingress(release, str(gateway.base_url), port, tmp_path),
        httpx2.Client(base_url=proxy, headers=gateway.headers, timeout=gateway.timeout) as through,
    ):
        too_long = background.submit(through.post, "/v1/completions", json={**text, "max_tokens": 7000})
        begin = time.monotonic()
        arrivals: list[float] = []
        last = ""
        body = {**text, "max_tokens": tokens, "stream": True}
        with through.stream("POST", "/v1/completions", json=body) as stream, slowed(podman, container) as pace:
            assert stream.status_code == 200
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    last = line.removeprefix("data: ")
                    arrivals.append(time.monotonic() - begin)
                    pace(arrivals[-1] < STREAM_SECONDS and len(arrivals) / tokens > arrivals[-1] / STREAM_SECONDS)
        answer = too_long.result()
        waited = time.monotonic() - begin

    assert last == "[DONE]", last
    assert arrivals[-1] >= STREAM_SECONDS
    assert max(later - earlier for earlier, later in pairwise(arrivals)) < 10, "held back"
    assert answer.status_code == 504
    assert answer.json()["error"]["code"], "the gateway's own answer, not the proxy's"
    assert REQUEST_TIMEOUT - 1 <= waited < REQUEST_TIMEOUT + 8


@contextmanager
def slowed(podman: Podman, container: str) -> Iterator[Any]:
    """Makes a pod as slow as a test needs it: what is yielded, called with True, stops it for half a second."""
    processes = processes_of(podman.inspect(container))

    def pace(stop: bool) -> None:
        if stop:
            signal_all(processes, signal.SIGSTOP)
            time.sleep(0.5)
            signal_all(processes, signal.SIGCONT)

    try:
        yield pace
    finally:
        signal_all(processes, signal.SIGCONT)


@contextmanager
def ingress(release: Release, upstream: str, port: int, folder: Path) -> Iterator[None]:
    """nginx with the directives that an ingress controller makes of the chart's annotations."""
    annotations = release.of_kind("Ingress")[0]["metadata"]["annotations"]
    words = {"true": "on", "false": "off"}
    directives = {
        name.removeprefix("nginx.org/").replace("-", "_"): words.get(value, value)
        for name, value in annotations.items()
        if name.startswith("nginx.org/")
    }
    assert {"proxy_read_timeout", "proxy_send_timeout", "proxy_buffering", "client_max_body_size"} <= directives.keys()
    assert directives["proxy_buffering"] == "off"
    lines = "\n".join(f"    {name} {value};" for name, value in directives.items())
    temporary = "\n".join(
        f"  {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n"
        f"  access_log off;\n{temporary}\n  server {{\n    listen 127.0.0.1:{port};\n    proxy_http_version 1.1;\n"
        f"{lines}\n    location / {{ proxy_pass {upstream.rstrip('/')}; }}\n  }}\n}}\n"
    )
    nginx = subprocess.Popen(["nginx", "-p", folder, "-c", configuration, "-e", "stderr"])
    try:
        wait_for(lambda: httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code == 200, "nginx", 10)
        yield
    finally:
        nginx.terminate()
        nginx.wait(10)
