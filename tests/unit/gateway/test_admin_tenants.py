"""The admin API's tenants: what is given to them, and how they end."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from services.gateway.accounts import Accounts
from tests.unit.gateway.administering import Headers, bearer


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
