"""The admin API's keys: shown once, changed, rotated and revoked."""

from __future__ import annotations

import time

from flask.testing import FlaskClient

from services.gateway.accounts import Accounts
from tests.unit.gateway.administering import Headers, bearer
from tests.unit.gateway.conftest import PASSWORD, Clock


def test_a_created_key_works_and_is_shown_once(client: FlaskClient, operator: Headers) -> None:
    body = {"tenant": "demo", "name": "ci", "requests_per_minute": 7, "tokens_per_minute": 70}
    made = client.post("/admin/keys", json=body, headers=operator)
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    plain = made.get_json()["key"]
    principal = client.get("/whoami", headers=bearer(plain)).get_json()
    assert (
        principal["tenant"],
        principal["limits"]["requests_per_minute"],
        principal["limits"]["tokens_per_minute"],
    ) == ("demo", 7, 70)
    assert plain not in client.get("/admin/keys", headers=operator).text


def test_a_key_may_be_an_admins(client: FlaskClient, operator: Headers) -> None:
    body = {"name": "automation", "scopes": ["inference", "admin"]}
    plain = client.post("/admin/keys", json=body, headers=operator).get_json()["key"]
    assert client.get("/admin/tenants", headers=bearer(plain)).status_code == 200


def test_a_revoked_key_is_refused_at_once_and_still_listed(client: FlaskClient, operator: Headers) -> None:
    made = client.post("/admin/keys", json={"tenant": "demo", "name": "ci"}, headers=operator).get_json()
    assert client.get("/whoami", headers=bearer(made["key"])).status_code == 200
    revoked = client.delete(f"/admin/keys/{made['id']}", headers=operator)
    assert revoked.get_json()["revoked_at"] >= made["created_at"]
    assert client.get("/whoami", headers=bearer(made["key"])).status_code == 401
    assert revoked.get_json() in client.get("/admin/keys?tenant=demo", headers=operator).get_json()["data"]


def test_lists_show_no_hash_and_no_password(client: FlaskClient, operator: Headers, accounts: Accounts) -> None:
    key, _ = accounts.keys.create("demo", "ci")
    user = accounts.users.create("demo", "ada", PASSWORD)
    shown = "".join(client.get(f"/admin/{kind}", headers=operator).text for kind in ("keys", "users"))
    assert key.id in shown
    assert user.id in shown
    assert key.hash not in shown
    assert user.password_hash not in shown


def test_a_key_is_shown_and_changed(client: FlaskClient, operator: Headers, accounts: Accounts) -> None:
    key, plain = accounts.keys.create("demo", "ci")
    path = f"/admin/keys/{key.id}"
    shown = client.get(path, headers=operator).get_json()
    assert (shown["prefix"], shown["models"]) == (plain[:11], None)
    change = {"name": "new", "models": ["m"], "tokens_per_month": 9, "scopes": ["inference", "admin"]}
    changed = client.patch(path, json=change, headers=operator).get_json()
    assert changed == {**shown, **change, "scopes": ["admin", "inference"]}
    assert client.patch(path, json={"models": None}, headers=operator).get_json()["models"] is None


def test_a_changed_key_is_another_one_at_once(client: FlaskClient, operator: Headers, accounts: Accounts) -> None:
    key, plain = accounts.keys.create("demo", "ci")
    assert client.get("/admin/keys", headers=bearer(plain)).status_code == 403
    client.patch(f"/admin/keys/{key.id}", json={"scopes": ["inference", "admin"]}, headers=operator)
    assert client.get("/admin/keys", headers=bearer(plain)).status_code == 200
    client.patch(f"/admin/keys/{key.id}", json={"disabled": True}, headers=operator)
    assert client.get("/admin/keys", headers=bearer(plain)).status_code == 401
    client.patch(f"/admin/keys/{key.id}", json={"disabled": False}, headers=operator)
    assert client.get("/admin/keys", headers=bearer(plain)).status_code == 200


def test_a_rotated_key_overlaps_with_the_old_one(
    client: FlaskClient, operator: Headers, accounts: Accounts, clock: Clock
) -> None:
    key, plain = accounts.keys.create("demo", "ci", tokens_per_day=5, models=["m"])
    made = client.post(f"/admin/keys/{key.id}/rotate", json={"overlap": 60}, headers=operator)
    assert made.status_code == 201
    new = made.get_json()
    assert (new["rotated_from"], new["tokens_per_day"], new["models"]) == (key.id, 5, ["m"])
    assert new["key"] != plain
    assert {client.get("/whoami", headers=bearer(each)).status_code for each in (plain, new["key"])} == {200}
    clock.advance(61)
    assert client.get("/whoami", headers=bearer(plain)).get_json()["error"]["code"] == "token_expired"
    assert client.get("/whoami", headers=bearer(new["key"])).status_code == 200


def test_a_key_is_rotated_by_default_with_a_day_of_overlap(
    client: FlaskClient, operator: Headers, accounts: Accounts
) -> None:
    key, _ = accounts.keys.create("demo", "ci")
    now = int(time.time())
    assert client.post(f"/admin/keys/{key.id}/rotate", headers=operator).status_code == 201
    assert 86_400 <= client.get(f"/admin/keys/{key.id}", headers=operator).get_json()["expires_at"] - now <= 86_460


def test_a_revoked_key_can_be_neither_changed_nor_rotated(
    client: FlaskClient, operator: Headers, accounts: Accounts
) -> None:
    key, _ = accounts.keys.create("demo", "ci")
    client.delete(f"/admin/keys/{key.id}", headers=operator)
    assert client.patch(f"/admin/keys/{key.id}", json={"name": "new"}, headers=operator).status_code == 409
    assert client.post(f"/admin/keys/{key.id}/rotate", headers=operator).status_code == 409


def test_a_key_that_expires_holds_until_then(client: FlaskClient, operator: Headers) -> None:
    expires = int(time.time()) + 60
    made = client.post("/admin/keys", json={"name": "ci", "expires_at": expires}, headers=operator).get_json()
    assert made["expires_at"] == expires
    assert client.get("/whoami", headers=bearer(made["key"])).status_code == 200
