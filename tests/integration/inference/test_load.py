"""What a real pod says of its load, and what a gateway makes of it."""

from __future__ import annotations

import time
from pathlib import Path

from prometheus_client import CollectorRegistry

from services.common.metrics import GatewayMetrics
from services.common.orca import LOAD_HEADER, Report, read_report
from services.gateway.upstreams.discover import Fleet
from services.gateway.upstreams.resolve import Source
from tests.integration.inference.pod import Answer, running_pod
from tests.unit.inference.tiny import save_tiny


def report(answer: Answer) -> Report:
    value = next(value for name, value in answer.headers.items() if name.lower() == LOAD_HEADER)
    found = read_report(value)
    assert found is not None
    return found


def test_a_gateway_knows_a_pods_batch_and_queue_and_the_wait_there(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", "llama")
    body = {"model": "m", "prompt": "a", "max_tokens": 200, "ignore_eos": True}
    with running_pod(tmp_path, tmp_path, model=f"m={folder}", max_batch=2, kv_blocks=256) as pod:
        assert {tuple(said["models"]) for said in pod.readiness} == {("m",)}, "it names its models while it loads"
        for _ in range(2):
            answer = pod.post("/v1/completions", {**body, "max_tokens": 4})
        assert report(answer).capacity == 2
        idle = report(pod.get("/readyz"))
        assert (idle.waiting, idle.running, idle.kv_usage) == (0, 0, 0)

        metrics = GatewayMetrics(CollectorRegistry())
        fleet = Fleet(Source([f"http://127.0.0.1:{pod.port}"]), interval=1, metrics=metrics)
        fleet.look()
        (seen,) = fleet.upstreams
        connections = [pod.open("/v1/completions", {**body, "stream": True}) for _ in range(6)]
        try:
            deadline = time.monotonic() + 20
            while not seen.queue or not fleet.queue_wait("m"):
                assert time.monotonic() < deadline, "no queue was seen"
                fleet.look()
            assert seen.load(seen.clock()) > seen.queue
        finally:
            for connection in connections:
                connection.close()
            fleet.stop()
