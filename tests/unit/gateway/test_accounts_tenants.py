"""Tenants: their names, their rights, and what goes with them."""

from __future__ import annotations

import pytest

from services.cache.windows import Limits
from services.common.errors import Conflict, InvalidRequest
from services.gateway.accounts import Accounts
from tests.unit.gateway.conftest import PASSWORD


def test_a_tenant_name_is_given_once(accounts: Accounts) -> None:
    with pytest.raises(Conflict):
        accounts.tenants.create("demo")


@pytest.mark.parametrize("name", ["", "Demo", "-a", "a-", "a b", "é", "a" * 64, "a\n", "other"])
def test_a_tenant_name_is_fit_to_label_metrics(accounts: Accounts, name: str) -> None:
    with pytest.raises(InvalidRequest):
        accounts.tenants.create(name)


def test_the_cache_salt_is_the_tenants_own(accounts: Accounts) -> None:
    demo, platform = accounts.tenants.get("demo"), accounts.tenants.get("platform")
    assert accounts.cache_salt(demo) == accounts.cache_salt(accounts.tenants.get("demo"))
    assert accounts.cache_salt(demo) != accounts.cache_salt(platform)


def test_a_tenants_limits_are_set_and_taken_away(accounts: Accounts) -> None:
    accounts.tenants.update("demo", tokens_per_day=5, micros_per_month=7, models=["b", "a"], weight=2.0)
    tenant = accounts.tenants.update("demo", tokens_per_day=None, disabled=True)
    assert tenant.limits == Limits(micros_per_month=7)
    assert (tenant.allowed_models, tenant.weight, tenant.disabled) == ({"a", "b"}, 2.0, True)
    assert accounts.tenants.get("demo").limits == tenant.limits


def test_a_misspelt_limit_is_no_limit_that_is_set(accounts: Accounts) -> None:
    with pytest.raises(TypeError, match="tokens_per_hour"):
        accounts.tenants.update("demo", tokens_per_hour=5)


def test_a_tenant_goes_with_its_users_and_keys(accounts: Accounts) -> None:
    accounts.users.create("demo", "ada", PASSWORD)
    _, plain = accounts.keys.create("demo", "ci")
    _, other = accounts.keys.create("platform", "ci")
    old = accounts.tenants.delete("demo")
    assert accounts.keys.find(plain) is None
    assert accounts.users.by_name("ada") is None
    assert accounts.keys.find(other) is not None
    assert accounts.tenants.create("demo").id != old.id


def test_the_platform_can_be_neither_disabled_nor_deleted(accounts: Accounts) -> None:
    with pytest.raises(Conflict):
        accounts.tenants.update("platform", disabled=True)
    with pytest.raises(Conflict):
        accounts.tenants.delete("platform")
