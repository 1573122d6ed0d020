"""Log in, refresh, log out: what each answers, and which tokens hold afterwards."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

import jwt
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from services.common.errors import AccountsUnavailable
from services.common.settings import GatewaySettings
from services.gateway.accounts import Accounts
from tests.unit.gateway.conftest import PASSWORD, Clock, CountingHasher

Tokens = dict[str, Any]


@pytest.fixture(autouse=True)
def ada(accounts: Accounts) -> None:
    accounts.users.create("demo", "ada", PASSWORD)


@pytest.fixture
def tokens(client: FlaskClient) -> Tokens:
    return log_in(client).get_json()


def log_in(client: FlaskClient, **changes: Any) -> TestResponse:
    return client.post("/login", json={"username": "ada", "password": PASSWORD, **changes})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def refresh(client: FlaskClient, token: str) -> TestResponse:
    return client.post("/refresh", headers=bearer(token))


def code(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["error"]["code"]


def test_a_log_in_answers_two_tokens_that_no_cache_may_keep(client: FlaskClient) -> None:
    answer = log_in(client)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    body = answer.get_json()
    assert set(body) == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (body["token_type"], body["expires_in"]) == ("Bearer", 900)


def test_the_access_token_opens_the_other_routes(client: FlaskClient, tokens: Tokens) -> None:
    answer = client.get("/whoami", headers=bearer(tokens["access_token"]))
    assert answer.get_json()["tenant"] == "demo"


def test_tokens_say_who_issued_them_for_whom_and_until_when(
    client: FlaskClient, accounts: Accounts, tokens: Tokens
) -> None:
    user = accounts.users.by_name("ada")
    for kind, seconds in (("access", 900), ("refresh", 2_592_000)):
        token = tokens[f"{kind}_token"]
        claims = jwt.decode(token, options={"verify_signature": False})
        assert jwt.get_unverified_header(token)["alg"] == "HS256"
        assert (claims["iss"], claims["sub"], claims["type"]) == ("forebay", user.id, kind)
        assert (claims["tenant"], claims["role"]) == (user.tenant_id, "member")
        assert claims["exp"] - claims["iat"] == seconds


def test_a_wrong_password_and_an_unknown_user_have_the_same_answer(client: FlaskClient) -> None:
    wrong, unknown = log_in(client, password="wrong"), log_in(client, username="nobody")
    assert code(wrong) == (401, "invalid_credentials")
    assert wrong.get_json() == unknown.get_json()


def test_an_unknown_user_is_compared_with_a_hash_too(client: FlaskClient, hasher: CountingHasher) -> None:
    log_in(client, username="nobody")
    assert len(hasher.compared) == 1


def test_a_disabled_user_can_not_log_in(client: FlaskClient, accounts: Accounts) -> None:
    accounts.users.update(accounts.users.by_name("ada").id, disabled=True)
    assert code(log_in(client)) == (401, "invalid_credentials")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"password": PASSWORD}, "username"),
        ({"username": "ada"}, "password"),
        ({"username": "ada", "password": 5}, "password"),
        ({"username": "ada", "password": "x" * 2000}, "password"),
    ],
)
def test_a_bad_body_is_told_which_field_is_wrong(client: FlaskClient, body: dict[str, Any], field: str) -> None:
    answer = client.post("/login", json=body)
    assert answer.status_code == 400
    assert answer.get_json()["error"]["param"] == field


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"[]", b'{"username": "\\ud800", "password": "x"}'])
def test_a_body_that_is_no_json_object_is_400(client: FlaskClient, body: bytes) -> None:
    assert client.post("/login", data=body).status_code == 400


def test_a_refresh_gives_a_new_pair(client: FlaskClient, tokens: Tokens) -> None:
    fresh = refresh(client, tokens["refresh_token"]).get_json()
    assert client.get("/whoami", headers=bearer(fresh["access_token"])).status_code == 200
    assert refresh(client, fresh["refresh_token"]).status_code == 200


def test_a_refresh_token_is_good_for_one_refresh(client: FlaskClient, tokens: Tokens) -> None:
    refresh(client, tokens["refresh_token"])
    assert code(refresh(client, tokens["refresh_token"])) == (401, "invalid_api_key")


def test_of_two_refreshes_that_both_found_the_token_good_one_succeeds(
    client: FlaskClient, accounts: Accounts, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts.revoked, "has", lambda jti: False)
    answers = [refresh(client, tokens["refresh_token"]).status_code for _ in range(2)]
    assert answers == [200, 401]


def test_an_access_token_refreshes_nothing(client: FlaskClient, tokens: Tokens) -> None:
    assert code(refresh(client, tokens["access_token"])) == (401, "invalid_api_key")


def test_an_expired_refresh_token_is_told_apart(app: Flask, client: FlaskClient) -> None:
    app.config["JWT_REFRESH_TOKEN_EXPIRES"] = -1
    assert code(refresh(client, log_in(client).get_json()["refresh_token"])) == (401, "token_expired")


def test_a_disabled_user_can_not_refresh(client: FlaskClient, accounts: Accounts, tokens: Tokens) -> None:
    accounts.users.update(accounts.users.by_name("ada").id, disabled=True)
    assert refresh(client, tokens["refresh_token"]).status_code == 401


def test_an_api_key_can_not_refresh_or_log_out(client: FlaskClient, operator: dict[str, str]) -> None:
    for path in ("/refresh", "/logout"):
        assert client.post(path, headers=operator).status_code == 401


def test_after_log_out_the_access_token_is_refused_at_once(client: FlaskClient, tokens: Tokens) -> None:
    headers = bearer(tokens["access_token"])
    assert client.get("/whoami", headers=headers).status_code == 200
    assert client.post("/logout", headers=headers).status_code == 204
    assert client.get("/whoami", headers=headers).status_code == 401


def test_a_log_out_ends_the_refresh_token_that_it_names(client: FlaskClient, tokens: Tokens) -> None:
    body = {"refresh_token": tokens["refresh_token"]}
    client.post("/logout", headers=bearer(tokens["access_token"]), json=body)
    assert refresh(client, tokens["refresh_token"]).status_code == 401


def test_a_log_out_leaves_the_tokens_of_other_users_alone(
    client: FlaskClient, accounts: Accounts, tokens: Tokens
) -> None:
    accounts.users.create("demo", "eve", PASSWORD)
    eve = log_in(client, username="eve").get_json()
    client.post("/logout", headers=bearer(eve["access_token"]), json={"refresh_token": tokens["refresh_token"]})
    assert refresh(client, tokens["refresh_token"]).status_code == 200


def test_a_log_out_with_a_refresh_token_that_does_not_hold_succeeds(client: FlaskClient, tokens: Tokens) -> None:
    answer = client.post("/logout", headers=bearer(tokens["access_token"]), json={"refresh_token": "nonsense"})
    assert answer.status_code == 204


def guess(client: FlaskClient, username: str = "ada", address: str = "10.0.0.1", **headers: str) -> TestResponse:
    body = {"username": username, "password": "wrong"}
    return client.post("/login", json=body, headers=headers, environ_overrides={"REMOTE_ADDR": address})


@pytest.mark.parametrize("username", ["ada", "nobody", "NOT A NAME"])
def test_guesses_at_one_user_are_slowed_down_whether_there_is_one_or_not(client: FlaskClient, username: str) -> None:
    answers = [guess(client, username, address=f"10.0.0.{number}") for number in range(11)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429]
    assert code(answers[-1]) == (429, "rate_limit_exceeded")
    assert answers[-1].headers["Retry-After"] == "30"


def test_what_is_slowed_down_compares_no_password(client: FlaskClient, hasher: CountingHasher) -> None:
    for _ in range(20):
        guess(client)
    assert len(hasher.compared) == 10


def test_the_right_password_works_once_the_pause_is_over(client: FlaskClient, clock: Clock) -> None:
    for _ in range(11):
        answer = guess(client)
    assert log_in(client).status_code == 429
    clock.advance(int(answer.headers["Retry-After"]))
    assert log_in(client).status_code == 200


def test_guesses_from_one_address_are_slowed_down_over_all_users(client: FlaskClient) -> None:
    answers = [guess(client, f"user-{number}", address="10.0.0.9").status_code for number in range(51)]
    assert answers == [401] * 50 + [429]
    assert guess(client, "somebody", address="10.0.0.10").status_code == 401


def test_log_ins_that_succeed_are_not_counted(client: FlaskClient) -> None:
    assert {log_in(client).status_code for _ in range(60)} == {200}


def test_a_header_changes_no_address_unless_a_proxy_is_trusted(client: FlaskClient) -> None:
    forged = [guess(client, f"user-{n}", **{"X-Forwarded-For": f"10.1.0.{n}"}).status_code for n in range(51)]
    assert forged[-1] == 429


def test_behind_a_trusted_proxy_its_clients_are_told_apart(client: FlaskClient, settings: GatewaySettings) -> None:
    settings.trusted_proxies = 1
    seen = [guess(client, f"user-{n}", **{"X-Forwarded-For": f"10.1.0.{n}"}).status_code for n in range(51)]
    assert set(seen) == {401}


def test_a_log_in_that_the_database_can_not_answer_is_not_counted(
    client: FlaskClient, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: str) -> None:
        raise AccountsUnavailable

    monkeypatch.setattr(accounts.users, "verify", gone)
    assert {log_in(client).status_code for _ in range(20)} == {503}
    monkeypatch.undo()
    assert log_in(client).status_code == 200


def test_no_password_and_no_token_is_logged_or_stored(
    client: FlaskClient, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = log_in(client).get_json()
    log_in(client, password="a wrong password")
    client.post("/logout", headers=bearer(tokens["access_token"]), json={"refresh_token": tokens["refresh_token"]})
    with sqlite3.connect(database) as connection:
        stored = "\n".join(connection.iterdump())
    connection.close()
    logged = "\n".join(str(vars(record)) for record in caplog.records)
    for secret in (PASSWORD, "a wrong password", tokens["access_token"], tokens["refresh_token"]):
        assert secret not in logged
        assert secret not in stored
