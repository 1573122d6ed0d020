"""What the admins of one tenant may see and do, and what not."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from services.gateway.accounts import Accounts
from tests.unit.gateway.administering import Headers
from tests.unit.gateway.conftest import PASSWORD


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
