"""The admin API: who may use it, on which tenants, what it shows and what it never shows."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from services.gateway.accounts import Accounts
from tests.unit.gateway.conftest import PASSWORD, Clock

Headers = dict[str, str]


def bearer(credential: str) -> Headers:
    return {"Authorization": f"Bearer {credential}"}


def log_in(client: FlaskClient, username: str, password: str = PASSWORD) -> Headers:
    answer = client.post("/login", json={"username": username, "password": password})
    return bearer(answer.get_json()["access_token"])


def admin_routes(app: Flask) -> list[tuple[str, str]]:
    """Every method and path under `/admin`, with an id where the path has one."""
    return [
        (method, re.sub("<[^>]+>", "0" * 28, rule.rule))
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/admin")
        for method in sorted((rule.methods or set()) - {"OPTIONS", "HEAD"})
    ]


# Who


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


# Tenants


def test_a_tenant_is_created_and_listed(client: FlaskClient, operator: Headers) -> None:
    made = client.post("/admin/tenants", json={"name": "research"}, headers=operator)
    assert made.status_code == 201
    assert made.get_json() in client.get("/admin/tenants", headers=operator).get_json()["data"]


def test_a_tenant_has_limits_models_a_weight_and_a_choice_to_share(client: FlaskClient, operator: Headers) -> None:
    given = {"tokens_per_day": 1000, "micros_per_month": 5_000_000, "models": ["b", "a"], "weight": 2.5}
    made = client.post("/admin/tenants", json={"name": "lab", **given}, headers=operator).get_json()
    assert made == client.get("/admin/tenants/lab", headers=operator).get_json()
    assert {name: made[name] for name in given} == {**given, "models": ["a", "b"]}
    assert (made["share_cache"], made["disabled"], made["requests_per_minute"]) == (False, False, None)
    changed = client.patch("/admin/tenants/lab", json={"tokens_per_day": None, "concurrent": 3}, headers=operator)
    assert changed.get_json() == {**made, "tokens_per_day": None, "concurrent": 3}
    assert client.get("/admin/tenants/lab", headers=operator).get_json() == changed.get_json()


def test_a_disabled_tenant_lets_nobody_in_and_alone_can_be_deleted(
    client: FlaskClient, operator: Headers, accounts: Accounts
) -> None:
    _, plain = accounts.keys.create("demo", "ci")
    assert client.get("/whoami", headers=bearer(plain)).status_code == 200
    assert client.delete("/admin/tenants/demo", headers=operator).status_code == 409
    client.patch("/admin/tenants/demo", json={"disabled": True}, headers=operator)
    assert client.get("/whoami", headers=bearer(plain)).status_code == 403
    assert client.delete("/admin/tenants/demo", headers=operator).get_json()["name"] == "demo"
    assert client.get("/admin/tenants/demo", headers=operator).status_code == 404
    assert accounts.keys.find(plain) is None


@pytest.mark.parametrize("change", ["disable", "delete"])
def test_the_platform_itself_stays(client: FlaskClient, operator: Headers, change: str) -> None:
    if change == "disable":
        answer = client.patch("/admin/tenants/platform", json={"disabled": True}, headers=operator)
    else:
        answer = client.delete("/admin/tenants/platform", headers=operator)
    assert answer.status_code == 409


def test_a_second_tenant_of_the_name_is_a_conflict(client: FlaskClient, operator: Headers) -> None:
    answer = client.post("/admin/tenants", json={"name": "demo"}, headers=operator)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (409, "conflict")


# Users


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


# Keys


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


def test_a_key_that_expires_holds_until_then(client: FlaskClient, operator: Headers) -> None:
    expires = int(time.time()) + 60
    made = client.post("/admin/keys", json={"name": "ci", "expires_at": expires}, headers=operator).get_json()
    assert made["expires_at"] == expires
    assert client.get("/whoami", headers=bearer(made["key"])).status_code == 200


# Across tenants


def test_a_tenants_admin_sees_its_own_tenant_alone(
    client: FlaskClient, accounts: Accounts, operator: Headers, demo_admin: Headers
) -> None:
    accounts.users.create("platform", "root", PASSWORD, "admin")
    accounts.users.create("demo", "ada", PASSWORD)
    for kind in ("tenants", "users", "keys"):
        rows = client.get(f"/admin/{kind}", headers=demo_admin).get_json()["data"]
        assert [row.get("tenant", row.get("name")) for row in rows] == ["demo"]


@pytest.mark.parametrize("kind", ["tenants", "users", "keys"])
@pytest.mark.parametrize("other", ["platform", "nowhere"])
def test_a_tenants_admin_can_not_ask_for_another_nor_learn_whether_it_exists(
    client: FlaskClient, demo_admin: Headers, kind: str, other: str
) -> None:
    answer = client.get(f"/admin/{kind}?tenant={other}", headers=demo_admin)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (403, "forbidden")


def test_a_tenants_admin_makes_users_and_keys_in_its_own_tenant(client: FlaskClient, demo_admin: Headers) -> None:
    user = client.post("/admin/users", json={"username": "ada"}, headers=demo_admin).get_json()
    key = client.post("/admin/keys", json={"name": "ci"}, headers=demo_admin).get_json()
    assert (user["tenant"], key["tenant"]) == ("demo", "demo")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("tenants", {"name": "mine"}),
        ("users", {"tenant": "platform", "username": "ada", "role": "admin"}),
        ("keys", {"tenant": "platform", "name": "ci", "scopes": ["inference", "admin"]}),
        ("keys", {"name": "ci", "requests_per_minute": 1_000_000}),
    ],
)
def test_a_tenants_admin_can_not_reach_beyond_its_tenant_or_its_limits(
    client: FlaskClient, demo_admin: Headers, path: str, body: dict[str, Any]
) -> None:
    assert client.post(f"/admin/{path}", json=body, headers=demo_admin).status_code == 403


def test_ids_of_another_tenant_do_not_exist_for_a_tenants_admin(
    client: FlaskClient, accounts: Accounts, demo_admin: Headers
) -> None:
    key, plain = accounts.keys.create("platform", "ci")
    user = accounts.users.create("platform", "root", PASSWORD, "admin")
    for method, path, body in (
        ("GET", f"keys/{key.id}", None),
        ("PATCH", f"keys/{key.id}", {"name": "mine"}),
        ("POST", f"keys/{key.id}/rotate", {}),
        ("DELETE", f"keys/{key.id}", None),
        ("GET", f"users/{user.id}", None),
        ("PATCH", f"users/{user.id}", {"disabled": True}),
        ("DELETE", f"users/{user.id}", None),
        ("GET", "tenants/platform", None),
        ("PATCH", "tenants/platform", {"share_cache": True}),
        ("DELETE", "tenants/platform", None),
    ):
        answer = client.open(f"/admin/{path}", method=method, json=body, headers=demo_admin)
        assert answer.status_code == 404, (method, path)
        # Nothing else is said of what does not exist at all.
        elsewhere = path.replace(key.id, "0" * 28).replace(user.id, "0" * 28).replace("platform", "nowhere")
        nothing = client.open(f"/admin/{elsewhere}", method=method, json=body, headers=demo_admin)
        assert answer.get_json() == nothing.get_json()
    assert accounts.keys.find(plain).revoked_at is None
    assert accounts.users.verify("root", PASSWORD)


@pytest.mark.parametrize(
    "change", [{"tokens_per_day": 1}, {"models": ["m"]}, {"models": None}, {"weight": 9}, {"disabled": False}]
)
def test_what_a_tenant_may_use_is_not_for_its_own_admins_to_say(
    client: FlaskClient, demo_admin: Headers, change: dict[str, Any]
) -> None:
    answer = client.patch("/admin/tenants/demo", json=change, headers=demo_admin)
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (403, next(iter(change)))


def test_a_tenants_admin_takes_no_limit_away(client: FlaskClient, accounts: Accounts, demo_admin: Headers) -> None:
    key, _ = accounts.keys.create("demo", "ci", tokens_per_day=5)
    answer = client.patch(f"/admin/keys/{key.id}", json={"tokens_per_day": None}, headers=demo_admin)
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (403, "tokens_per_day")
    assert accounts.keys.get(key.id).tokens_per_day == 5


def test_a_tenants_admin_opts_into_sharing_and_names_the_models_of_its_keys(
    client: FlaskClient, accounts: Accounts, demo_admin: Headers
) -> None:
    key, _ = accounts.keys.create("demo", "ci")
    assert client.patch("/admin/tenants/demo", json={"share_cache": True}, headers=demo_admin).status_code == 200
    assert client.patch(f"/admin/keys/{key.id}", json={"models": ["m"]}, headers=demo_admin).status_code == 200
    assert accounts.tenants.get("demo").share_cache is True
