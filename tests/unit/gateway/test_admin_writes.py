"""Writes of the admin API: done once, on record, and both or neither."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from services.common.errors import ApiError
from services.gateway.accounts import Accounts
from services.gateway.accounts.tables import unix_now
from services.gateway.routes.admin.writes import KEPT
from tests.unit.gateway.conftest import KEY_SECRET, PASSWORD

Headers = dict[str, str]
ONCE = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}


# Done once


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "tenants", {"name": "lab"}),
        ("POST", "users", {"tenant": "demo", "username": "ada"}),
        ("POST", "keys", {"tenant": "demo", "name": "ci"}),
        ("PATCH", "tenants/demo", {"weight": 2}),
        ("PATCH", "keys/KEY", {"name": "new"}),
        ("POST", "keys/KEY/rotate", {"overlap": 5}),
        ("DELETE", "keys/KEY", None),
        ("DELETE", "users/USER", None),
    ],
)
def test_a_write_that_is_sent_again_is_answered_the_same_and_not_done_again(
    client: FlaskClient, operator: Headers, accounts: Accounts, method: str, path: str, body: Any
) -> None:
    key, _ = accounts.keys.create("demo", "there")
    user = accounts.users.create("demo", "bob", PASSWORD)
    path = f"/admin/{path.replace('KEY', key.id).replace('USER', user.id)}"
    first, again = (client.open(path, method=method, json=body, headers=operator | ONCE) for _ in range(2))
    assert first.status_code in (200, 201), first.text
    assert (again.status_code, again.get_json()) == (first.status_code, first.get_json())
    assert again.headers["Cache-Control"] == "no-store"
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert len(accounts.audit.entries()) == 1


def test_without_the_header_it_is_done_again(client: FlaskClient, operator: Headers, accounts: Accounts) -> None:
    for _ in range(2):
        assert client.post("/admin/keys", json={"name": "ci"}, headers=operator).status_code == 201
    assert len(accounts.keys.page()) == 3


def test_the_repeated_answer_has_the_key_itself_which_works(client: FlaskClient, operator: Headers) -> None:
    answers = [client.post("/admin/keys", json={"name": "ci"}, headers=operator | ONCE).get_json() for _ in range(2)]
    assert answers[0]["key"] == answers[1]["key"]
    assert client.get("/whoami", headers={"Authorization": f"Bearer {answers[1]['key']}"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/admin/keys", {"name": "other"}),
        ("POST", "/admin/users", {"name": "ci"}),
        ("PATCH", "/admin/tenants/demo", {"weight": 2}),
    ],
    ids=["body", "route", "method"],
)
def test_the_same_key_for_another_request_is_a_conflict(
    client: FlaskClient, operator: Headers, method: str, path: str, body: Any
) -> None:
    client.post("/admin/keys", json={"name": "ci"}, headers=operator | ONCE)
    answer = client.open(path, method=method, json=body, headers=operator | ONCE)
    if path == "/admin/users":
        assert answer.status_code == 400, "the body is looked at first"
        return
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert answer.get_json()["error"]["param"] == "Idempotency-Key"


def test_the_same_key_of_another_actor_is_another_one(
    client: FlaskClient, operator: Headers, demo_admin: Headers
) -> None:
    answers = [client.post("/admin/keys", json={"name": "ci"}, headers=who | ONCE) for who in (operator, demo_admin)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert [answer.get_json()["tenant"] for answer in answers] == ["platform", "demo"]


def test_a_refused_write_is_not_kept_so_that_it_may_be_sent_again(
    client: FlaskClient, operator: Headers, accounts: Accounts
) -> None:
    body = {"tenant": "lab", "name": "ci"}
    assert client.post("/admin/keys", json=body, headers=operator | ONCE).status_code == 404
    accounts.tenants.create("lab")
    assert client.post("/admin/keys", json=body, headers=operator | ONCE).status_code == 201


def test_an_answer_is_kept_for_a_day(
    client: FlaskClient, operator: Headers, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = client.post("/admin/keys", json={"name": "ci"}, headers=operator | ONCE).get_json()
    for seconds, same in ((KEPT - 60, True), (KEPT + 60, False)):
        monkeypatch.setattr("services.gateway.accounts.audit.unix_now", lambda later=seconds: unix_now() + later)
        again = client.post("/admin/keys", json={"name": "ci"}, headers=operator | ONCE).get_json()
        assert (again["id"] == first["id"]) is same


@pytest.mark.parametrize("header", ["", "x" * 256, "caf\u00e9"])
def test_a_key_that_is_none_is_refused(client: FlaskClient, operator: Headers, header: str) -> None:
    answer = client.post("/admin/keys", json={"name": "ci"}, headers=operator | {"Idempotency-Key": header})
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (400, "Idempotency-Key")


def test_many_of_the_same_at_once_are_done_once(app: Flask, operator: Headers, accounts: Accounts) -> None:
    def send(_: int) -> tuple[int, str]:
        answer = app.test_client().post("/admin/keys", json={"name": "ci"}, headers=operator | ONCE)
        return answer.status_code, answer.get_json()["key"]

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(send, range(24)))
    assert len(answers) == 1
    assert len(accounts.keys.page()) == 2
    assert len(accounts.audit.entries()) == 1


def test_no_secret_lies_in_the_database_in_plain(
    client: FlaskClient, operator: Headers, accounts: Accounts, database: Path
) -> None:
    key = client.post("/admin/keys", json={"name": "ci"}, headers=operator | ONCE).get_json()["key"]
    once = {"Idempotency-Key": "another"}
    made = client.post("/admin/users", json={"username": "ada"}, headers=operator | once).get_json()
    client.patch(f"/admin/users/{made['id']}", json={"password": "a new password"}, headers=operator)
    accounts.close()
    written = b"".join(file.read_bytes() for file in database.parent.iterdir())
    assert b"fernet" not in written
    assert made["id"].encode() in written
    for secret in (
        key,
        made["password"],
        "a new password",
        ONCE["Idempotency-Key"],
        KEY_SECRET,
        operator["Authorization"][7:],
    ):
        assert secret.encode() not in written


# On record


def audit(client: FlaskClient, headers: Headers, query: str = "") -> list[dict[str, Any]]:
    answer = client.get(f"/admin/audit{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.get_json()["data"]
    return found


def test_every_change_is_an_entry_of_the_audit_log_and_a_line_without_secrets(
    client: FlaskClient, operator: Headers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    headers = operator | {"X-Request-Id": "follow-me"}
    tenant = client.post("/admin/tenants", json={"name": "lab", "weight": 2}, headers=headers).get_json()
    user = client.post("/admin/users", json={"tenant": "lab", "username": "ada"}, headers=headers).get_json()
    client.patch(f"/admin/users/{user['id']}", json={"disabled": True, "password": PASSWORD}, headers=headers)
    key = client.post("/admin/keys", json={"tenant": "lab", "name": "ci"}, headers=headers).get_json()
    client.patch(f"/admin/keys/{key['id']}", json={"tokens_per_day": 5}, headers=headers)
    new = client.post(f"/admin/keys/{key['id']}/rotate", json={"overlap": 9}, headers=headers).get_json()
    client.delete(f"/admin/keys/{new['id']}", headers=headers)
    client.delete(f"/admin/users/{user['id']}", headers=headers)
    client.patch("/admin/tenants/lab", json={"disabled": True}, headers=headers)
    client.delete("/admin/tenants/lab", headers=headers)

    actor = client.get("/whoami", headers=operator).get_json()["subject"]
    entries = audit(client, operator)[::-1]
    assert {(entry["actor"], entry["tenant"], entry["request_id"]) for entry in entries} == {
        (actor, "lab", "follow-me")
    }
    assert [(entry["action"], entry["target"], entry["detail"]) for entry in entries] == [
        ("tenant.create", tenant["id"], {"name": "lab", "weight": 2}),
        ("user.create", user["id"], {"username": "ada"}),
        ("user.update", user["id"], {"disabled": [False, True], "password": "new"}),
        ("key.create", key["id"], {"name": "ci", "scopes": ["inference"]}),
        ("key.update", key["id"], {"tokens_per_day": [None, 5]}),
        ("key.rotate", key["id"], {"key": new["id"], "overlap": 9}),
        ("key.revoke", new["id"], {}),
        ("user.delete", user["id"], {"username": "ada"}),
        ("tenant.update", tenant["id"], {"disabled": [False, True]}),
        ("tenant.delete", tenant["id"], {}),
    ]
    lines = [vars(record) for record in caplog.records if record.name == "forebay.audit"]
    assert [(line["action"], line["target"]) for line in lines] == [
        (entry["action"], entry["target"]) for entry in entries
    ]
    logged = json.dumps([entries, [vars(record) for record in caplog.records]], default=str)
    for secret in (user["password"], PASSWORD, key["key"], new["key"], operator["Authorization"]):
        assert secret not in logged


def test_what_was_refused_is_in_no_log(
    client: FlaskClient, demo_admin: Headers, operator: Headers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client.post("/admin/tenants", json={"name": "mine"}, headers=demo_admin)
    client.post("/admin/tenants", json={"name": "demo"}, headers=operator)
    client.delete("/admin/keys/" + "0" * 28, headers=operator)
    assert not [record for record in caplog.records if record.name == "forebay.audit"]
    assert audit(client, operator) == []


def test_the_log_is_filtered_by_actor_tenant_action_and_time(
    client: FlaskClient, operator: Headers, demo_admin: Headers
) -> None:
    client.post("/admin/tenants", json={"name": "lab"}, headers=operator)
    client.post("/admin/keys", json={"name": "ci"}, headers=demo_admin)
    client.post("/admin/keys", json={"name": "ci", "tenant": "lab"}, headers=operator)
    actor = client.get("/whoami", headers=demo_admin).get_json()["subject"]
    now = unix_now()

    def found(query: str) -> list[tuple[str, str]]:
        return [(entry["action"], entry["tenant"]) for entry in audit(client, operator, query)]

    everything = [("key.create", "lab"), ("key.create", "demo"), ("tenant.create", "lab")]
    assert found("") == everything
    assert found("?tenant=lab") == [everything[0], everything[2]]
    assert found("?action=key.create") == everything[:2]
    assert found(f"?actor={actor}") == [everything[1]]
    assert found(f"?since={now - 60}&until={now + 60}") == everything
    assert found(f"?until={now - 60}") == found(f"?since={now + 60}") == []
    assert found("?tenant=nowhere") == []


def test_the_log_is_paged_from_the_newest_on(client: FlaskClient, operator: Headers) -> None:
    for number in range(5):
        client.post("/admin/keys", json={"name": f"key {number}"}, headers=operator)
    seen: list[str] = []
    after, more = "", True
    while more:
        page = client.get(f"/admin/audit?limit=2{after}", headers=operator).get_json()
        seen += [entry["detail"]["name"] for entry in page["data"]]
        after, more = f"&after={page['data'][-1]['id']}", page["has_more"]
    assert seen == [f"key {number}" for number in (4, 3, 2, 1, 0)]


def test_a_tenants_admin_reads_what_happened_to_its_tenant_alone(
    client: FlaskClient, operator: Headers, demo_admin: Headers
) -> None:
    client.post("/admin/tenants", json={"name": "lab"}, headers=operator)
    client.patch("/admin/tenants/demo", json={"weight": 3}, headers=operator)
    assert [entry["action"] for entry in audit(client, demo_admin)] == ["tenant.update"]
    assert client.get("/admin/audit?tenant=lab", headers=demo_admin).status_code == 403
    assert client.get("/admin/audit?tenant=nowhere", headers=demo_admin).status_code == 403


def test_the_name_of_a_deleted_tenant_is_not_given_to_another(client: FlaskClient, operator: Headers) -> None:
    """Or the other one's admins would read, by its name, what was used and done in the first."""
    client.patch("/admin/tenants/demo", json={"disabled": True}, headers=operator)
    assert client.delete("/admin/tenants/demo", headers=operator).status_code == 200
    answer = client.post("/admin/tenants", json={"name": "demo"}, headers=operator)
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (409, "name")


def test_nobody_can_change_the_log(app: Flask) -> None:
    methods = {method for rule in app.url_map.iter_rules() if "audit" in rule.rule for method in rule.methods or ()}
    assert methods == {"GET", "HEAD", "OPTIONS"}


# Both or neither


@pytest.mark.parametrize("part", ["audit", "answers"])
def test_a_write_that_can_not_be_recorded_is_not_done(
    client: FlaskClient, operator: Headers, accounts: Accounts, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ApiError("the disk is full")

    method: Callable[..., Any] = fail
    monkeypatch.setattr(getattr(accounts, part), "record" if part == "audit" else "keep", method)
    assert client.post("/admin/keys", json={"name": "ci"}, headers=operator | ONCE).status_code == 500
    assert client.post("/admin/tenants", json={"name": "lab"}, headers=operator | ONCE).status_code == 500
    assert [key.name for key in accounts.keys.page(limit=9)] == ["operator"]
    assert [tenant.name for tenant in accounts.tenants.page()] == ["platform", "demo"]
    monkeypatch.undo()
    assert accounts.audit.entries() == []
