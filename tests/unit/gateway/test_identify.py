"""Whose a request is: keys that hold and those that don't, their rights and scopes."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from services.cache.windows import Limits
from services.common.errors import Forbidden, NotAuthenticated, TokenExpired
from services.common.settings import GatewaySettings
from services.gateway.accounts import Accounts
from services.gateway.accounts.credentials import mint_key
from services.gateway.identify import Identifier, require
from tests.unit.gateway.conftest import KEY_SECRET, Clock


@pytest.fixture
def key(accounts: Accounts) -> str:
    return accounts.keys.create("demo", "ci")[1]


def test_a_key_gives_its_tenant_its_id_and_the_default_limits(
    identifier: Identifier, accounts: Accounts, key: str
) -> None:
    principal = identifier.identify(f"Bearer {key}")
    assert principal.tenant == "demo"
    assert principal.subject == f"key:{accounts.keys.find(key).id}"
    assert principal.scopes == {"inference"}
    assert (principal.limits.requests_per_minute, principal.limits.tokens_per_minute) == (600, 200_000)


def test_a_keys_own_limits_come_before_the_defaults(identifier: Identifier, accounts: Accounts) -> None:
    _, plain = accounts.keys.create("demo", "ci", requests_per_minute=7, tokens_per_minute=70)
    principal = identifier.identify(f"Bearer {plain}")
    assert (principal.limits.requests_per_minute, principal.limits.tokens_per_minute) == (7, 70)


def test_the_cache_salt_is_an_hmac_of_the_tenants_id(identifier: Identifier, accounts: Accounts, key: str) -> None:
    tenant = accounts.tenants.get("demo").id
    expected = hmac.new(KEY_SECRET.encode(), f"cache:{tenant}".encode(), hashlib.sha256).hexdigest()
    assert identifier.identify(f"Bearer {key}").cache_salt == expected


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER  {}", "  Bearer {} "])
def test_the_scheme_is_read_in_any_case_and_spacing(identifier: Identifier, key: str, form: str) -> None:
    assert identifier.identify(form.format(key)).tenant == "demo"


def test_a_missing_header_is_told_what_to_send(identifier: Identifier) -> None:
    with pytest.raises(NotAuthenticated, match="Authorization: Bearer"):
        identifier.identify(None)


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Basic YTpi", "fb-x", "Bearer a b", "Bearer ü", "Bearer \0"])
def test_a_malformed_header_is_refused_as_such(identifier: Identifier, header: str) -> None:
    with pytest.raises(NotAuthenticated, match="malformed"):
        identifier.identify(header)


def test_an_unknown_key_is_refused_without_repeating_it(identifier: Identifier) -> None:
    plain = mint_key()
    with pytest.raises(NotAuthenticated) as refused:
        identifier.identify(f"Bearer {plain}")
    assert plain not in refused.value.message
    assert plain[3:11] not in refused.value.message


def test_an_expired_key_is_told_apart(identifier: Identifier, accounts: Accounts, clock: Clock) -> None:
    _, plain = accounts.keys.create("demo", "ci", expires_at=int(clock()) + 10)
    clock.advance(11)
    with pytest.raises(TokenExpired):
        identifier.identify(f"Bearer {plain}")


def test_a_revoked_key_is_refused(identifier: Identifier, accounts: Accounts, key: str) -> None:
    accounts.keys.revoke(accounts.keys.find(key).id)
    with pytest.raises(NotAuthenticated, match="revoked"):
        identifier.identify(f"Bearer {key}")


def test_limits_are_the_keys_own_or_the_defaults_and_the_tenants(
    accounts: Accounts, settings: GatewaySettings, clock: Clock
) -> None:
    accounts.tenants.update("demo", micros_per_month=5_000_000, weight=2.5, share_cache=True)
    _, plain = accounts.keys.create("demo", "ci", tokens_per_minute=70, concurrent=3)
    defaults = settings.model_copy(update={"concurrent_requests": 8, "tokens_per_day": 1000, "micros_per_day": 7})
    principal = Identifier(accounts, defaults, clock=clock, monotonic=clock).identify(f"Bearer {plain}")
    assert principal.limits == Limits(
        requests_per_minute=600, tokens_per_minute=70, concurrent=3, tokens_per_day=1000, micros_per_day=7
    )
    assert principal.tenant_limits == Limits(micros_per_month=5_000_000)
    assert (principal.weight, principal.share_cache) == (2.5, True)


@pytest.mark.parametrize(
    ("of_tenant", "of_key", "both"),
    [
        (None, None, None),
        (["a"], None, {"a"}),
        (None, ["b"], {"b"}),
        (["a", "b"], ["b", "c"], {"b"}),
        ([], ["a"], set()),
    ],
)
def test_models_must_be_allowed_to_tenant_and_key(
    identifier: Identifier, accounts: Accounts, of_tenant: list[str], of_key: list[str], both: set[str] | None
) -> None:
    accounts.tenants.update("demo", models=of_tenant)
    _, plain = accounts.keys.create("demo", "ci", models=of_key)
    assert identifier.identify(f"Bearer {plain}").models == both


def test_a_disabled_key_and_a_disabled_tenant_are_refused_within_the_ttl(
    identifier: Identifier, accounts: Accounts, key: str, clock: Clock
) -> None:
    identity = accounts.keys.find(key).id
    accounts.keys.update(identity, disabled=True)
    with pytest.raises(NotAuthenticated, match="disabled"):
        identifier.identify(f"Bearer {key}")
    accounts.keys.update(identity, disabled=False)
    identifier.identify(f"Bearer {key}")
    accounts.tenants.update("demo", disabled=True)
    clock.advance(5)
    with pytest.raises(Forbidden, match="'demo' is disabled"):
        identifier.identify(f"Bearer {key}")


def test_of_a_rotated_key_both_hold_until_the_overlap_ends(
    identifier: Identifier, accounts: Accounts, key: str, clock: Clock
) -> None:
    _, fresh = accounts.keys.rotate(accounts.keys.find(key).id, overlap=60)
    for plain in (key, fresh):
        assert identifier.identify(f"Bearer {plain}").tenant == "demo"
    clock.advance(61)
    assert identifier.identify(f"Bearer {fresh}").tenant == "demo"
    with pytest.raises(TokenExpired):
        identifier.identify(f"Bearer {key}")


def test_who_has_the_scope_passes_and_who_has_not_is_forbidden(identifier: Identifier, key: str) -> None:
    principal = identifier.identify(f"Bearer {key}")
    require(principal, "inference")
    with pytest.raises(Forbidden, match="admin"):
        require(principal, "admin")
