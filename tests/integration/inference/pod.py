"""A real pod: gunicorn on a loopback port, as a client and an operator see it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.common import sse
from tests.ports import free_port

ROOT = Path(__file__).parents[3]
START_TIMEOUT = 120.0
ALONE = ("-m", "gunicorn", "-c", "python:services.inference.gunicorn_conf")
SPLIT = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "services.inference")
"""How a pod is started: as one process, or as two that share the model."""


@dataclass
class Answer:
    """A response, whole."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.data)

    @property
    def text(self) -> str:
        choice = self.body["choices"][0]
        return str(choice["message"]["content"] if "message" in choice else choice["text"])

    @property
    def finish(self) -> str:
        return str(self.body["choices"][0]["finish_reason"])


@dataclass
class Streamed:
    """A stream, read to its end."""

    events: list[sse.Event]
    bodies: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.bodies = [json.loads(event.data) for event in self.events if event.data and not event.done]

    @property
    def ids(self) -> list[int]:
        return [token for event in self.events if event.note for token in event.note["token_ids"]]

    @property
    def deltas(self) -> list[str]:
        choices = [body["choices"][0] for body in self.bodies if body.get("choices")]
        return [choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices]

    @property
    def whole(self) -> bool:
        return self.events[-1].done


@dataclass
class Pod:
    port: int
    metrics_port: int
    process: subprocess.Popen[bytes]
    log: Path
    readiness: list[dict[str, Any]]
    """What `/readyz` said from the start on, without repetitions."""

    def open(self, path: str, body: Any, headers: dict[str, str] | None = None) -> http.client.HTTPConnection:
        """Sends a request and does not wait for the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, headers or {})
        return connection

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        connection = self.open(path, body, headers)
        try:
            return _read(connection)
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            return _read(connection)
        finally:
            connection.close()

    def stream(self, path: str, body: dict[str, Any]) -> Streamed:
        connection = self.open(path, body | {"stream": True})
        try:
            response = connection.getresponse()
            assert response.status == 200, response.read()
            return Streamed(list(sse.Parser().feed(response.read())))
        finally:
            connection.close()

    def await_log(self, text: str) -> str:
        """The log, once it says `text`: a request's line is written after its answer has left."""
        deadline = time.monotonic() + 30
        while text not in (log := self.log.read_text()):
            assert time.monotonic() < deadline, log
            time.sleep(0.01)  # a file tells nobody that it grew
        return log

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels."""
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=10)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        matching = [line for line in lines if line.startswith((name + "{", name + " "))]
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(line.rpartition(" ")[2]) for line in matching if all(label in line for label in wanted))

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def running_pod(
    folder: Path, home: Path, *, ready: bool = True, command: Sequence[str] = ALONE, **settings: Any
) -> Iterator[Pod]:
    """A pod with these settings, from when it is ready (or has failed) until the block ends."""
    port, metrics_port, log = free_port(), free_port(), folder / f"pod-{time.monotonic_ns()}.log"
    given = {"home": home, "inference_port": port, "metrics_port": metrics_port, "device": "cpu"} | settings
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("FOREBAY_", "PROMETHEUS_"))}
    environment["TMPDIR"] = str(folder)  # torchrun leaves its logs there
    environment |= {f"FOREBAY_{key.upper()}": str(value) for key, value in given.items()}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    pod = Pod(port, metrics_port, process, log, [])
    try:
        _wait(pod, "ready" if ready else "failed")
        yield pod
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(pod: Pod, status: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not pod.readiness or pod.readiness[-1]["status"] != status:
        assert pod.process.poll() is None, pod.log.read_text()
        assert time.monotonic() < deadline, pod.log.read_text()
        try:
            said = pod.get("/readyz").body
        except OSError:
            time.sleep(0.02)  # not listening yet, and nothing tells when it will
            continue
        if not pod.readiness or pod.readiness[-1] != said:
            pod.readiness.append(said)


def _read(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())
