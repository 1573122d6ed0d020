"""The admin API: who may use it, how its lists are read, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from services.gateway.accounts import Accounts
from tests.unit.gateway.administering import Headers, bearer, log_in
from tests.unit.gateway.conftest import PASSWORD


def admin_routes(app: Flask) -> list[tuple[str, str]]:
    """Every method and path under `/admin`, with an id where the path has one."""
    return [
        (method, re.sub("<[^>]+>", "0" * 28, rule.rule))
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/admin")
        for method in sorted((rule.methods or set()) - {"OPTIONS", "HEAD"})
    ]


def test_every_route_needs_a_credential(app: Flask, client: FlaskClient) -> None:
    routes = admin_routes(app)
    assert len(routes) >= 17
    for method, path in routes:
        assert client.open(path, method=method, json={}).status_code == 401, (method, path)


def test_every_route_is_forbidden_without_the_scope(app: Flask, client: FlaskClient, accounts: Accounts) -> None:
    _, plain = accounts.keys.create("platform", "plain")
    accounts.users.create("platform", "ada", PASSWORD)
    for headers in (bearer(plain), log_in(client, "ada")):
        for method, path in admin_routes(app):
            answer = client.open(path, method=method, json={}, headers=headers)
            assert (answer.status_code, answer.get_json()["error"]["code"]) == (403, "forbidden"), (method, path)


def test_an_admin_user_may_come_with_a_token(client: FlaskClient, accounts: Accounts) -> None:
    accounts.users.create("platform", "root", PASSWORD, "admin")
    assert client.get("/admin/tenants", headers=log_in(client, "root")).status_code == 200


# Lists


def test_lists_are_paged_by_limit_and_after(client: FlaskClient, operator: Headers, accounts: Accounts) -> None:
    made = [accounts.keys.create("demo", f"key {number}")[0].id for number in range(5)]
    seen: list[str] = []
    more, after = True, ""
    while more:
        page = client.get(f"/admin/keys?tenant=demo&limit=2{after}", headers=operator).get_json()
        assert page["object"] == "list"
        assert len(page["data"]) <= 2
        seen += [row["id"] for row in page["data"]]
        more, after = page["has_more"], f"&after={seen[-1]}"
    assert seen == made


@pytest.mark.parametrize("kind", ["users", "keys"])
def test_a_list_is_confined_to_the_tenant_that_is_asked_for(
    client: FlaskClient, operator: Headers, accounts: Accounts, kind: str
) -> None:
    accounts.users.create("demo", "ada", PASSWORD)
    accounts.users.create("platform", "bob", PASSWORD)
    accounts.keys.create("demo", "ci")
    rows = client.get(f"/admin/{kind}?tenant=demo", headers=operator).get_json()["data"]
    assert [row["tenant"] for row in rows] == ["demo"]
    assert len(client.get(f"/admin/{kind}", headers=operator).get_json()["data"]) == 2


# What is refused


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "tenants", {}, "name"),
        ("POST", "tenants", {"name": "Not A Slug"}, "name"),
        ("POST", "tenants", {"name": "fine", "colour": "red"}, "colour"),
        ("POST", "users", {"username": "Not A Name"}, "username"),
        ("POST", "users", {"username": "ada", "password": "short"}, "password"),
        ("POST", "users", {"username": "ada", "role": "owner"}, "role"),
        ("PATCH", "users/" + "0" * 28, {"disabled": "yes"}, "disabled"),
        ("PATCH", "users/" + "0" * 28, {}, None),
        ("POST", "keys", {}, "name"),
        ("POST", "keys", {"name": "line\nbreak"}, "name"),
        ("POST", "keys", {"name": "trailing line break\n"}, "name"),
        ("POST", "keys", {"name": "ci", "scopes": ["root"]}, "scopes.0"),
        ("POST", "keys", {"name": "ci", "scopes": []}, "scopes"),
        ("POST", "keys", {"name": "ci", "scopes": ["admin"]}, "scopes"),
        ("POST", "keys", {"name": "ci", "requests_per_minute": 0}, "requests_per_minute"),
        ("POST", "keys", {"name": "ci", "tokens_per_minute": "5"}, "tokens_per_minute"),
        ("POST", "keys", {"name": "ci", "request_per_minute": 5}, "request_per_minute"),
        ("POST", "keys", {"name": "ci", "expires_at": 1}, "expires_at"),
        ("POST", "keys", {"name": "ci", "expires_at": 10**30}, "expires_at"),
        ("POST", "tenants", {"name": "fine", "weight": 0}, "weight"),
        ("POST", "tenants", {"name": "fine", "concurrent": 0}, "concurrent"),
        ("POST", "tenants", {"name": "fine", "models": [""]}, "models.0"),
        ("POST", "tenants", {"name": "fine", "models": "all"}, "models"),
        ("POST", "tenants", {"name": "fine", "micros_per_day": 1.5}, "micros_per_day"),
        ("PATCH", "tenants/demo", {}, None),
        ("PATCH", "tenants/demo", {"name": "other"}, "name"),
        ("PATCH", "keys/" + "0" * 28, {}, None),
        ("PATCH", "keys/" + "0" * 28, {"scopes": ["admin"]}, "scopes"),
        ("PATCH", "keys/" + "0" * 28, {"expires_at": 5}, "expires_at"),
        ("POST", "keys/" + "0" * 28 + "/rotate", {"overlap": -1}, "overlap"),
        ("POST", "keys/" + "0" * 28 + "/rotate", {"overlap": 10**9}, "overlap"),
        ("GET", "audit?actor=%00", None, "actor"),
        ("GET", "audit?action=everything", None, "action"),
        ("GET", "audit?since=yesterday", None, "since"),
        ("GET", "audit?until=-1", None, "until"),
        ("GET", "audit?tenant=%00", None, "tenant"),
        ("GET", "keys?limit=0", None, "limit"),
        ("GET", "keys?limit=101", None, "limit"),
        ("GET", "keys?limit=many", None, "limit"),
        ("GET", "keys?after=%00", None, "after"),
        ("GET", "keys?tenants=demo", None, "tenants"),
    ],
)
def test_a_bad_value_is_400_and_names_the_field(
    client: FlaskClient, operator: Headers, method: str, path: str, body: Any, field: str | None
) -> None:
    answer = client.open(f"/admin/{path}", method=method, json=body, headers=operator)
    assert answer.status_code == 400, answer.text
    assert answer.get_json()["error"]["param"] == field


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "users/" + "0" * 28, {"disabled": True}),
        ("PATCH", "users/%00", {"disabled": True}),
        ("GET", "users/" + "0" * 28, None),
        ("DELETE", "users/" + "0" * 28, None),
        ("GET", "keys/" + "0" * 28, None),
        ("PATCH", "keys/" + "0" * 28, {"name": "new"}),
        ("POST", "keys/" + "0" * 28 + "/rotate", {}),
        ("GET", "tenants/nowhere", None),
        ("GET", "tenants/%00", None),
        ("PATCH", "tenants/nowhere", {"weight": 2}),
        ("DELETE", "tenants/nowhere", None),
        ("DELETE", "keys/" + "0" * 28, None),
        ("POST", "users", {"tenant": "nowhere", "username": "ada"}),
        ("POST", "keys", {"tenant": "nowhere", "name": "ci"}),
        ("POST", "keys", {"tenant": "\0", "name": "ci"}),
        ("GET", "keys?tenant=nowhere", None),
        ("GET", "users?tenant=nowhere", None),
    ],
)
def test_what_does_not_exist_is_404(client: FlaskClient, operator: Headers, method: str, path: str, body: Any) -> None:
    answer = client.open(f"/admin/{path}", method=method, json=body, headers=operator)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "not_found")
