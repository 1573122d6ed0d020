"""A pod from start to end: loading, full, deserted by clients, out of time, told to stop."""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from services.common import sse
from tests.integration.inference.conftest import HOME, MODEL, chat, completion
from tests.integration.inference.pod import Pod, running_pod

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LONG = completion("Once upon a time", max_tokens=1000, stop=["no such text ever appears"])


def first_event(response: Any) -> bytes:
    """Reads a stream up to its first data line."""
    line = b""
    while not line.startswith(b"data: "):
        line = response.readline()
    return line


def cancelled(pod: Pod) -> float:
    return pod.metric("forebay_engine_requests_total", outcome="cancelled")


def close_stream(pod: Pod) -> Callable[[], None]:
    connection = pod.open(COMPLETIONS, LONG | {"stream": True})
    response = connection.getresponse()
    first_event(response)
    return lambda: (response.close(), connection.close())  # type: ignore[func-returns-value]


def close_while_it_computes(pod: Pod) -> Callable[[], None]:
    connection = pod.open(COMPLETIONS, LONG)
    await_metric(pod, "forebay_engine_requests_running", 1)
    return connection.close


def reset_while_it_computes(pod: Pod) -> Callable[[], None]:
    connection = pod.open(COMPLETIONS, LONG)
    await_metric(pod, "forebay_engine_requests_running", 1)
    assert connection.sock is not None
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return connection.close


def await_metric(pod: Pod, name: str, value: float) -> None:
    """Metrics can only be looked at, again and again."""
    deadline = time.monotonic() + 20
    while pod.metric(name) != value:
        assert time.monotonic() < deadline, f"{name} never was {value}"
        time.sleep(0.01)


def test_a_pod_is_alive_at_once_and_ready_after_its_phases(narrow_pod: Pod) -> None:
    phases = [said["phase"] for said in narrow_pod.readiness if said["status"] == "loading"]
    assert phases == sorted(set(phases), key=["resolve", "map", "pack", "warm-up"].index)
    assert narrow_pod.readiness[0]["status"] == "loading"
    assert narrow_pod.readiness[-1] == {"status": "ready", "models": [MODEL]}
    assert narrow_pod.get("/healthz").status == 200
    assert narrow_pod.metric("forebay_engine_load_seconds", phase="map") > 0


@pytest.mark.parametrize("leave", [close_stream, close_while_it_computes, reset_while_it_computes])
def test_a_client_that_goes_away_frees_its_slot(narrow_pod: Pod, leave: Callable[[Pod], Callable[[], None]]) -> None:
    before = cancelled(narrow_pod)
    steps = narrow_pod.metric("forebay_engine_step_seconds_count")
    go = leave(narrow_pod)
    go()
    # The pod has one slot, and the request that held it had nearly a thousand steps to go.
    assert narrow_pod.post(COMPLETIONS, completion("Hi", max_tokens=1)).status == 200
    assert narrow_pod.metric("forebay_engine_step_seconds_count") - steps < 500
    assert cancelled(narrow_pod) == before + 1
    await_metric(narrow_pod, "forebay_engine_requests_running", 0)
    assert narrow_pod.metric("forebay_engine_kv_cache_usage_ratio") == 0


def test_a_client_that_goes_away_while_it_waits_is_forgotten(narrow_pod: Pod) -> None:
    before = cancelled(narrow_pod)
    leave_first = close_stream(narrow_pod)
    second = narrow_pod.open(COMPLETIONS, LONG)
    await_metric(narrow_pod, "forebay_engine_requests_waiting", 1)
    second.close()
    await_metric(narrow_pod, "forebay_engine_requests_waiting", 0)
    assert cancelled(narrow_pod) == before + 1
    leave_first()
    await_metric(narrow_pod, "forebay_engine_requests_running", 0)


def test_a_full_queue_is_answered_429_with_a_time_to_come_again(narrow_pod: Pod) -> None:
    leave_first = close_stream(narrow_pod)
    second = narrow_pod.open(COMPLETIONS, LONG)
    await_metric(narrow_pod, "forebay_engine_requests_waiting", 1)
    refused = narrow_pod.post(COMPLETIONS, completion("Hi", max_tokens=1))
    assert (refused.status, refused.body["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert narrow_pod.get("/healthz").status == 200
    second.close()
    leave_first()
    await_metric(narrow_pod, "forebay_engine_requests_running", 0)


def test_time_that_is_over_before_the_first_token_is_answered_504(narrow_pod: Pod) -> None:
    for stream in (False, True):
        started = time.monotonic()
        answer = narrow_pod.post(CHAT, chat("Hi", stream=stream), {"X-Forebay-Timeout": "0.001"})
        assert (answer.status, answer.body["error"]["code"]) == (504, "deadline_exceeded")
        assert time.monotonic() - started < 5
    answer = narrow_pod.post(COMPLETIONS, LONG, {"X-Forebay-Timeout": "0.5"})
    assert answer.status == 504
    assert narrow_pod.metric("forebay_engine_requests_running") == 0


def test_time_that_is_over_in_a_stream_ends_it_with_an_error(narrow_pod: Pod) -> None:
    connection = narrow_pod.open(COMPLETIONS, LONG | {"stream": True}, {"X-Forebay-Timeout": "2"})
    response = connection.getresponse()
    assert response.status == 200
    events = list(sse.Parser().feed(response.read()))
    connection.close()
    assert b'"deadline_exceeded"' in (events[-1].data or b"")
    assert not any(event.done for event in events)


def test_two_models_share_a_pod_and_each_is_loaded_once(pod: Pod) -> None:
    with ThreadPoolExecutor(8) as clients:
        bodies = [completion([1, 2, 3], model=["second", MODEL][i % 2], max_tokens=3) for i in range(8)]
        answers = list(clients.map(lambda body: pod.post(COMPLETIONS, body), bodies))
    assert [answer.status for answer in answers] == [200] * 8
    assert [answer.body["model"] for answer in answers] == ["second", MODEL] * 4
    assert pod.log.read_text().count('"model ready"') == 2


def test_requests_stream_at_the_same_time(pod: Pod) -> None:
    """Ten clients, each of which waits after its first token for the first tokens of all the others."""
    together = threading.Barrier(10, timeout=30)

    def one(number: int) -> int:
        connection = pod.open(COMPLETIONS, completion(f"Story {number}:", max_tokens=40, stream=True))
        response = connection.getresponse()
        first_event(response)
        together.wait()
        rest = response.read()
        connection.close()
        return rest.count(b"data: ")

    with ThreadPoolExecutor(10) as clients:
        assert all(count > 5 for count in clients.map(one, range(10)))


def test_a_pod_that_is_told_to_stop_finishes_what_runs(model_folder: Path, tmp_path: Path) -> None:
    with running_pod(tmp_path, HOME, shutdown_grace=20) as pod:
        connection = pod.open(COMPLETIONS, completion("Once upon a time", max_tokens=40, stream=True))
        response = connection.getresponse()
        first_event(response)
        pod.process.send_signal(signal.SIGTERM)
        rest = response.read()
        assert rest.endswith(sse.DONE)
        connection.close()
        assert pod.process.wait(20) == 0


def test_a_pod_whose_grace_is_over_ends_streams_with_an_error(model_folder: Path, tmp_path: Path) -> None:
    with running_pod(tmp_path, HOME, shutdown_grace=1) as pod:
        connection = pod.open(COMPLETIONS, LONG | {"stream": True})
        response = connection.getresponse()
        first_event(response)
        pod.process.send_signal(signal.SIGTERM)
        events = list(sse.Parser().feed(response.read()))
        assert b"shutting down" in (events[-1].data or b"")
        connection.close()
        assert pod.process.wait(10) == 0


def test_a_pod_whose_step_takes_too_long_asks_to_be_started_anew(model_folder: Path, tmp_path: Path) -> None:
    with running_pod(tmp_path, HOME, step_timeout=0.001) as pod:  # any step does
        assert pod.get("/healthz").body == {"status": "ok"}
        leave = close_stream(pod)
        deadline = time.monotonic() + 20
        while (alive := pod.get("/healthz")).status == 200:  # between two steps all is well
            assert time.monotonic() < deadline
        assert alive.status == 503
        assert alive.body["reason"] == f"A step of the model '{MODEL}' has not come back for 0 seconds."
        leave()
        log = pod.await_log("should be started anew")
        assert "run.py" in log.split("should be started anew")[1]
        assert pod.get("/v1/models").status == 200


def test_a_pod_without_its_model_says_why_it_is_not_ready(tmp_path: Path) -> None:
    with running_pod(tmp_path, HOME, ready=False, model="/no/such/model") as pod:
        assert pod.readiness[-1] == {
            "status": "failed",
            "reason": "There is no model file or folder /no/such/model.",
        }
        assert pod.get("/healthz").status == 200
        assert pod.post(CHAT, chat("Hi", model="model")).status == 503
        assert "Traceback" not in pod.log.read_text()
