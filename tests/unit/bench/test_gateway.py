"""What `make bench-gateway` makes of its jobs' results, and the pod that it puts behind the gateway."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import Any

import pytest

from bench.engine.rows import judge
from bench.gateway import pod, steps
from bench.gateway.measures import JOBS
from bench.gateway.rows import ROWS, added, held, least, most
from bench.machine import Others, cpu_seconds, family, memory
from services.common import sse
from services.gateway.observe import usage_of
from services.gateway.upstreams.http1 import Response

RESULTS: dict[str, Any] = {
    "ours": {"runs": [{"rate": 90.0, "p50": 0.003, "tokens": 99, "due": 100}, {"rate": 80.0, "p50": 0.002}]},
    "theirs": {"runs": [{"rate": 8.0, "p50": 0.0005}, {"rate": 10.0, "p50": 0.001}]},
    "streams": {"runs": [{"tokens": 100, "due": 100}, {"tokens": 80, "due": 100}, {"tokens": 90, "due": 100}]},
}


def test_of_a_rate_the_largest_round_counts_and_of_a_cost_the_smallest() -> None:
    assert most("ours", "rate")(RESULTS, "best") == 90
    assert most("ours", "rate")(RESULTS, "median") == 85
    assert least("ours", "p50", 1000)(RESULTS, "best") == 2
    assert least("ours", "p50", 1000)(RESULTS, "median") == 2.5


def test_what_is_added_is_the_difference_of_both_sides_best() -> None:
    assert added("p50", "ours", "theirs")(RESULTS, "best") == pytest.approx(1.5)


def test_tokens_that_did_not_come_count_from_the_worst_round() -> None:
    assert held("streams")(RESULTS, "best") == 0.8
    assert held("streams")(RESULTS, "median") == 0.9


def test_every_row_asks_for_jobs_that_there_are() -> None:
    assert {job for row in ROWS for job in row.jobs} == set(JOBS)


def test_a_row_whose_rival_is_not_installed_says_so() -> None:
    row = next(row for row in ROWS if row.name == "litellm")
    verdict = judge(row, {}, {"litellm-32": "not installed"})
    assert verdict.met is None
    assert verdict.reason == "litellm-32: not installed"


def test_a_sample_belongs_to_the_step_whose_frame_it_has_and_waiting_threads_to_none() -> None:
    below = "AsyncWorker.handle (gunicorn/workers/base_async.py:98);Flask.wsgi_app (flask/app.py:1511)"
    front = f"{below};Front.__call__ (services/gateway/recall/known.py:100)"
    samples = [
        f"{below};settle (services/gateway/settle.py:23);Quotas.settle (services/cache/quotas.py:94) 3",
        f"{below};settle (services/gateway/settle.py:23);_entry (services/gateway/settle.py:70) 2",
        f"{front};Flask.preprocess_request (flask/app.py:1271) 4",
        f"{front};Front._answer (services/gateway/recall/known.py:120);renewed (services/gateway/recall/known.py:9) 5",
        "AsyncWorker.handle (gunicorn/workers/base_async.py:98) 1",
        "_WorkerGreenlet.run (gevent/threadpool.py:9);acquire_with_timeout (gevent/_threading.py:33) 90",
    ]
    found = steps.sort(samples)
    assert found == {
        "settle: exchange with Redis": 3,
        "settle: entry, metrics, answer to keep": 2,
        "Flask, Werkzeug": 4,
        "hit: the rest": 5,
        "gunicorn: the rest": 1,
    }
    assert steps.table(found, 500).splitlines()[1].split() == ["Flask,", "Werkzeug", "133", "us"]


def ask_pod(body: dict[str, Any]) -> tuple[Response, bytes]:
    """What the pod answers: head and body."""

    async def exchange() -> tuple[Response, bytes]:
        server = await asyncio.get_running_loop().create_server(pod.Connection, "127.0.0.1", 0)
        steps = asyncio.create_task(pod.step_for_ever())
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        data = json.dumps(body, separators=(",", ":")).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))
        response, text = Response((await reader.readuntil(b"\r\n\r\n"))[:-4]), b""
        while not response.ended:
            text += response.feed(await reader.read(65536))
        writer.close()
        steps.cancel()
        server.close()
        return response, text

    return asyncio.run(exchange())


def test_the_pod_answers_as_pods_do() -> None:
    response, body = ask_pod({"model": "mock"})
    assert response.status == 200
    usage = usage_of(body)
    assert usage is not None
    assert usage.completion_tokens == pod.ANSWER_TOKENS


def test_the_pods_streams_have_notes_usage_and_the_time_of_each_token() -> None:
    begin = time.monotonic_ns()
    _, body = ask_pod({"model": "mock", "stream": True, "max_tokens": 3})
    events = list(sse.Parser().feed(body))
    notes = [event.note for event in events if event.note]
    assert [note["completion_tokens"] for note in notes] == [0, 1, 2, 3, 3]
    assert [len(note["token_ids"]) for note in notes] == [0, 1, 1, 1, 0]
    chunks = [json.loads(event.data or b"") for event in events[1:4]]
    times = [int(chunk["choices"][0]["delta"]["content"].removeprefix("@")) for chunk in chunks]
    assert begin < times[0] < times[1] < times[2] < time.monotonic_ns()
    usage = usage_of(events[-2].data or b"")
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (pod.PROMPT_TOKENS, 3)
    assert events[-1].done


def test_what_a_process_and_its_children_cost_is_counted() -> None:
    spin = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    command = [sys.executable, "-c", spin]
    child = subprocess.Popen(["sh", "-c", '"$@"; true', "sh", *command], stdin=-1, stdout=-1)
    assert child.stdin
    assert child.stdout
    others = Others()
    try:
        child.stdout.readline()
        assert len(family(child.pid)) == 2
        assert cpu_seconds(child.pid) >= 0.15  # it is counted in ticks of 10 ms
        assert memory(child.pid) > 1_000_000
        assert 0 <= others.share() <= 1
    finally:
        child.communicate(b"\n", timeout=30)
    assert cpu_seconds(child.pid) == 0
