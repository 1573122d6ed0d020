"""What is measured: the jobs by name, and how each is done. A job's rounds are spread over the run, so that what
disturbs the machine for a while does not fall on one contender alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.gateway import servers
from bench.gateway.servers import ROOT, Cores, Failed, Place, Server
from bench.machine import cpu_seconds

LUA = Path(__file__).with_name("chat.lua")
WARM_UP = 1.5
"""Seconds of load before each round that do not count."""
SPARE = 60.0
"""Seconds that a load may take beyond those that it is told."""

Start = Callable[[Place], AbstractContextManager[Server]]
Measure = Callable[[Server, Cores, float], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A server and what it is measured by."""

    start: Start
    measure: Measure


def requests(server: Server, cores: Cores, seconds: float, *, clients: int, prompts: str = "fresh") -> dict[str, Any]:
    """Chats that are not streamed, by so many clients at a time.

    Returns:
        rate, in requests/s; p50 and p99, in seconds; cpu: the server's seconds for one request.

    Raises:
        Failed: wrk is not installed, or an answer was not 200.
    """
    if shutil.which("wrk") is None:
        raise Failed("wrk is not installed")
    load = partial(_wrk, server, cores, clients=clients, prompts=prompts)
    load(WARM_UP)
    spent = cpu_seconds(server.pid)
    said = load(seconds)
    spent = cpu_seconds(server.pid) - spent
    if said["refused"] or said["broken"]:
        raise Failed(f"{said['refused']} requests were refused, {said['broken']} broken")
    return {
        "rate": said["requests"] / said["seconds"],
        "p50": said["p50"],
        "p99": said["p99"],
        "cpu": spent / said["requests"],
    }


def _wrk(server: Server, cores: Cores, seconds: float, *, clients: int, prompts: str) -> dict[str, Any]:
    # wrk knows whole seconds only.
    length = f"-d{max(1, round(seconds))}s"
    argv = ["taskset", "--cpu-list", str(cores.rest), "wrk", "-t1", f"-c{clients}", length, "--timeout", "30s"]
    argv += ["-s", str(LUA), f"{server.url}/v1/chat/completions", "--", server.key, prompts]
    return dict(json.loads(_output(argv, seconds).splitlines()[-1]))


def streams(server: Server, cores: Cores, seconds: float, *, count: int) -> dict[str, Any]:
    """So many streams at a time, for so long: see `bench.gateway.streams`."""
    argv = ["taskset", "--cpu-list", str(cores.rest), sys.executable, "-m", "bench.gateway.streams"]
    argv += [server.url, server.key, str(count), str(seconds), str(server.pid)]
    return dict(json.loads(_output(argv, seconds)))


def _output(argv: list[str], seconds: float) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + SPARE, cwd=ROOT, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"the load took longer than {seconds + SPARE:.0f} s") from None
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["the load failed"])[-1])
    return done.stdout


MANY = 32
"""Clients at a time."""
STREAMS = 800
OPEN = 1000
"""Streams whose memory is measured."""

JOBS: dict[str, Job] = {
    "nginx-1": Job(servers.nginx, partial(requests, clients=1)),
    "forebay-1": Job(servers.forebay, partial(requests, clients=1)),
    "litellm-32": Job(servers.litellm, partial(requests, clients=MANY)),
    "forebay-32": Job(servers.forebay, partial(requests, clients=MANY)),
    "hits": Job(servers.forebay, partial(requests, clients=MANY, prompts="same")),
    "two workers": Job(partial(servers.forebay, workers=2), partial(requests, clients=MANY)),
    "streams": Job(servers.forebay, partial(streams, count=STREAMS)),
    "memory": Job(servers.forebay, partial(streams, count=OPEN)),
}
