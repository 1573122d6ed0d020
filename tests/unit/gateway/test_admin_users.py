"""The admin API's users: passwords that are shown once, and changes that end their tokens."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from services.gateway.accounts import Accounts
from tests.unit.gateway.administering import Headers, log_in
from tests.unit.gateway.conftest import PASSWORD


def test_a_created_user_can_log_in_with_the_password_that_is_shown_once(client: FlaskClient, operator: Headers) -> None:
    made = client.post("/admin/users", json={"tenant": "demo", "username": "ada"}, headers=operator)
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    assert log_in(client, "ada", made.get_json()["password"])


def test_a_password_that_was_given_is_not_shown(client: FlaskClient, operator: Headers) -> None:
    body = {"tenant": "demo", "username": "ada", "password": PASSWORD}
    assert PASSWORD not in client.post("/admin/users", json=body, headers=operator).text


def test_a_user_name_that_is_taken_is_a_conflict(client: FlaskClient, operator: Headers, accounts: Accounts) -> None:
    accounts.users.create("platform", "ada", PASSWORD)
    answer = client.post("/admin/users", json={"tenant": "demo", "username": "ada"}, headers=operator)
    assert answer.status_code == 409


def test_a_disabled_user_is_out_at_once_and_an_enabled_one_may_log_in(
    client: FlaskClient, operator: Headers, accounts: Accounts
) -> None:
    path = f"/admin/users/{accounts.users.create('demo', 'ada', PASSWORD).id}"
    ada = log_in(client, "ada")
    assert client.get("/whoami", headers=ada).status_code == 200
    assert client.patch(path, json={"disabled": True}, headers=operator).get_json()["disabled"] is True
    assert client.get("/whoami", headers=ada).status_code == 401
    client.patch(path, json={"disabled": False}, headers=operator)
    assert client.get("/whoami", headers=log_in(client, "ada")).status_code == 200


def test_a_reset_password_is_the_only_one_that_works(
    client: FlaskClient, operator: Headers, accounts: Accounts
) -> None:
    user = accounts.users.create("demo", "ada", PASSWORD)
    client.patch(f"/admin/users/{user.id}", json={"password": "a new password"}, headers=operator)
    assert accounts.users.verify("ada", PASSWORD) is None
    assert accounts.users.verify("ada", "a new password") is not None


def test_an_admin_can_not_disable_itself(client: FlaskClient, accounts: Accounts) -> None:
    user = accounts.users.create("platform", "root", PASSWORD, "admin")
    answer = client.patch(f"/admin/users/{user.id}", json={"disabled": True}, headers=log_in(client, "root"))
    assert answer.status_code == 409


@pytest.mark.parametrize("body", [{"role": "member"}, {"disabled": True}, None])
def test_an_admin_can_not_lock_itself_out(client: FlaskClient, accounts: Accounts, body: Any) -> None:
    user = accounts.users.create("platform", "root", PASSWORD, "admin")
    path, headers = f"/admin/users/{user.id}", log_in(client, "root")
    answer = client.delete(path, headers=headers) if body is None else client.patch(path, json=body, headers=headers)
    assert answer.status_code == 409
    assert client.patch(path, json={"models": ["m"]}, headers=headers).status_code == 200


def test_a_users_role_is_changed_and_its_tokens_end(client: FlaskClient, operator: Headers, accounts: Accounts) -> None:
    user = accounts.users.create("demo", "ada", PASSWORD)
    ada = log_in(client, "ada")
    assert client.get("/admin/keys", headers=ada).status_code == 403
    client.patch(f"/admin/users/{user.id}", json={"role": "admin"}, headers=operator)
    assert client.get("/admin/keys", headers=ada).status_code == 401
    assert client.get("/admin/keys", headers=log_in(client, "ada")).status_code == 200


def test_a_deleted_user_is_out_at_once(client: FlaskClient, operator: Headers, accounts: Accounts) -> None:
    user = accounts.users.create("demo", "ada", PASSWORD)
    ada = log_in(client, "ada")
    assert client.get("/whoami", headers=ada).status_code == 200
    assert client.delete(f"/admin/users/{user.id}", headers=operator).get_json()["username"] == "ada"
    assert client.get("/whoami", headers=ada).status_code == 401
    assert client.get(f"/admin/users/{user.id}", headers=operator).status_code == 404
