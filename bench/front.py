"""`make bench-front`: what an engine at full load leaves of the pod's HTTP front.

A real pod with the bundled model streams to 16 clients while another asks `/healthz` 20 times a second on new
connections, as a kubelet does. Goals: at p99 `/healthz` within 100 ms, and a frame written within 20 ms of its token.
Prints a table and writes `build/bench-front.json`. The clients run on the same machine and take their part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from forebay.bench import quantile

MODEL = "smollm2-135m-instruct"
HEALTH_GOAL, FRAME_GOAL = 0.100, 0.020
"""Seconds at p99."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-front", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="how long")
    parser.add_argument("--streams", type=int, default=16, help="streams at the same time")
    parser.add_argument("--probes", type=float, default=20, help="requests to /healthz in a second")
    parser.add_argument("--switch-interval", type=float, help="sys.setswitchinterval of the pod, in seconds")
    parser.add_argument("--json", type=Path, default=Path("build/bench-front.json"), help="where the figures go")
    options = parser.parse_args()

    with running_pod(options.switch_interval) as port:
        figures = measure(port, options.seconds, options.streams, options.probes)
    figures = {"date": str(date.today()), "cores": os.cpu_count(), "switch_interval": options.switch_interval} | figures
    print(f"\n{date.today()}, {os.cpu_count()} cores, {MODEL}, {options.streams} streams, {options.seconds:g} s")
    print(f"{figures['tokens_per_second']:.0f} tokens/s, {figures['frames']} frames, {figures['probes']} probes\n")
    print(f"{'':24}{'p50':>9}{'p99':>9}{'max':>9}{'goal':>9}")
    for name, title in (("healthz", "/healthz, ms"), ("frame", "token to socket, ms")):
        row = figures[name]
        cells = "".join(f"{row[key] * 1000:9.1f}" for key in ("p50", "p99", "max", "goal"))
        print(f"{title:24}{cells}  {'met' if row['p99'] <= row['goal'] else 'MISSED'}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure(port: int, seconds: float, streams: int, probes: float) -> dict[str, Any]:
    """Loads the pod and probes it meanwhile; the first two seconds do not count."""
    end = threading.Event()
    tokens = [0] * streams
    clients = [threading.Thread(target=stream, args=(port, number, tokens, end)) for number in range(streams)]
    for client in clients:
        client.start()
    time.sleep(2)
    get(port, "/bench/delays")
    before, started = sum(tokens), time.monotonic()
    health = []
    for number in range(int(seconds * probes)):
        time.sleep(max(0.0, started + number / probes - time.monotonic()))
        asked = time.monotonic()
        get(port, "/healthz")
        health.append(time.monotonic() - asked)
    produced, wall = sum(tokens) - before, time.monotonic() - started
    delays = json.loads(get(port, "/bench/delays"))
    end.set()
    for client in clients:
        client.join()
    if len(delays) < streams:
        raise SystemExit("the pod did not stream; its log would say why")
    return {
        "tokens_per_second": produced / wall,
        "frames": len(delays),
        "probes": len(health),
        "healthz": _summary(health, HEALTH_GOAL),
        "frame": _summary(delays, FRAME_GOAL),
    }


def _summary(values: list[float], goal: float) -> dict[str, float]:
    return {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99), "max": max(values), "goal": goal}


def get(port: int, path: str) -> bytes:
    """The body of a GET on a connection of its own.

    Raises:
        RuntimeError: it was not answered 200.
    """
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{path} answers {response.status}")
        return response.read()
    finally:
        connection.close()


def stream(port: int, number: int, tokens: list[int], end: threading.Event) -> None:
    """One client: stream after stream, each frame counted as it comes."""
    while not end.is_set():
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        body = {"model": MODEL, "prompt": f"Story number {number}. Once upon a time", "max_tokens": 128, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body))
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"a stream was answered {response.status}: {response.read()!r}")
        while line := response.readline():
            tokens[number] += line.startswith(b"data: {")
        connection.close()


@contextmanager
def running_pod(switch_interval: float | None) -> Iterator[int]:
    """An instrumented pod on a port that it yields, from when it is ready to the end of the block."""
    port, metrics_port = free_port(), free_port()
    home = Path(os.environ.get("FOREBAY_HOME", ".forebay")).resolve()
    given = {"HOME": home, "INFERENCE_PORT": port, "METRICS_PORT": metrics_port, "LOG_LEVEL": "WARNING"}
    environment = {**os.environ, **{f"FOREBAY_{name}": str(value) for name, value in given.items()}}
    if switch_interval is not None:
        environment["BENCH_SWITCH_INTERVAL"] = str(switch_interval)
    command = [sys.executable, "-m", "gunicorn", "-c", "python:services.inference.gunicorn_conf"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "bench.front_pod:instrumented()"], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while True:
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"the pod ended with {process.returncode}:\n{log.read().decode()}")
                try:
                    get(port, "/readyz")
                except (OSError, RuntimeError):
                    time.sleep(0.5)
                else:
                    break
            yield port
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    """A port that nothing listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
