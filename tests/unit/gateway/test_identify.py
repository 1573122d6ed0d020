"""Who a request is from: keys and tokens that hold, those that don't, and for how long a check is trusted."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from services.cache.windows import Limits
from services.common.errors import AccountsUnavailable, Forbidden, NotAuthenticated, TokenExpired
from services.common.settings import GatewaySettings
from services.gateway import identify
from services.gateway.accounts import Accounts
from services.gateway.accounts.credentials import mint_key
from services.gateway.identify import Identifier, require
from tests.unit.gateway.conftest import JWT_SECRET, KEY_SECRET, PASSWORD, Clock


@pytest.fixture
def key(accounts: Accounts) -> str:
    return accounts.keys.create("demo", "ci")[1]


@pytest.fixture
def ada(accounts: Accounts, client: FlaskClient) -> dict[str, str]:
    """Tokens of a plain user of the tenant `demo`."""
    accounts.users.create("demo", "ada", PASSWORD)
    return client.post("/login", json={"username": "ada", "password": PASSWORD}).get_json()


def reads(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by one with each look for a key in the database."""
    seen: list[str] = []
    find = accounts.keys.find
    monkeypatch.setattr(accounts.keys, "find", lambda plain: seen.append(plain) or find(plain))
    return seen


# Keys


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


# Trust


def test_a_checked_key_is_trusted_without_a_look_into_the_database(
    identifier: Identifier, accounts: Accounts, key: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = reads(accounts, monkeypatch)
    for _ in range(10):
        identifier.identify(f"Bearer {key}")
        clock.advance(0.4)
    assert len(seen) == 1


def test_who_is_trusted_is_told_without_a_check_and_nobody_else(identifier: Identifier, key: str, clock: Clock) -> None:
    header = f"Bearer {key}"
    assert identifier.trusted(header) is None
    principal = identifier.identify(header)
    clock.advance(4.9)
    assert identifier.trusted(header) == principal
    assert [identifier.trusted(one) for one in (None, key, f"{header}x")] == [None] * 3
    clock.advance(0.1)
    assert identifier.trusted(header) is None
    identifier.identify(header)
    identifier.forget()
    assert identifier.trusted(header) is None


def test_a_revocation_elsewhere_takes_effect_within_the_ttl(
    identifier: Identifier, accounts: Accounts, key: str, clock: Clock
) -> None:
    identifier.identify(f"Bearer {key}")
    accounts.keys.revoke(accounts.keys.find(key).id)
    clock.advance(4.9)
    identifier.identify(f"Bearer {key}")
    clock.advance(0.1)
    with pytest.raises(NotAuthenticated, match="revoked"):
        identifier.identify(f"Bearer {key}")


def test_trust_is_counted_from_the_check_and_not_from_the_last_use(
    identifier: Identifier, accounts: Accounts, key: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = reads(accounts, monkeypatch)
    for _ in range(11):
        identifier.identify(f"Bearer {key}")
        clock.advance(1)
    assert len(seen) == 3


def test_a_key_does_not_outlive_its_expiry_by_being_trusted(
    identifier: Identifier, accounts: Accounts, clock: Clock
) -> None:
    _, plain = accounts.keys.create("demo", "ci", expires_at=int(clock()) + 2)
    identifier.identify(f"Bearer {plain}")
    clock.advance(2)
    with pytest.raises(TokenExpired):
        identifier.identify(f"Bearer {plain}")


def test_a_clock_that_is_set_back_does_not_lengthen_the_trust(
    accounts: Accounts, settings: GatewaySettings, key: str
) -> None:
    wall, steady = Clock(time.time()), Clock(1000)
    identifier = Identifier(accounts, settings, clock=wall, monotonic=steady)
    identifier.identify(f"Bearer {key}")
    accounts.keys.revoke(accounts.keys.find(key).id)
    wall.advance(-3600)
    steady.advance(5)
    with pytest.raises(NotAuthenticated):
        identifier.identify(f"Bearer {key}")


def test_failures_are_not_remembered(
    identifier: Identifier, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = mint_key()
    with pytest.raises(NotAuthenticated):
        identifier.identify(f"Bearer {soon}")
    monkeypatch.setattr("services.gateway.accounts.keys.mint_key", lambda: soon)
    accounts.keys.create("demo", "ci")
    assert identifier.identify(f"Bearer {soon}").tenant == "demo"


def test_what_was_read_before_a_revocation_is_not_remembered_after_it(
    identifier: Identifier, accounts: Accounts, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = accounts.keys.find

    def revoked_meanwhile(plain: str) -> Any:
        found = find(plain)
        accounts.keys.revoke(found.id)
        identifier.forget()
        return found

    monkeypatch.setattr(accounts.keys, "find", revoked_meanwhile)
    identifier.identify(f"Bearer {key}")
    monkeypatch.undo()
    with pytest.raises(NotAuthenticated):
        identifier.identify(f"Bearer {key}")


def test_memory_is_bounded_and_the_oldest_check_goes_first(
    identifier: Identifier, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identify, "MAX_TRUSTED", 3)
    keys = [accounts.keys.create("demo", "ci")[1] for _ in range(4)]
    seen = reads(accounts, monkeypatch)
    for plain in (*keys, *keys[1:], keys[0]):
        identifier.identify(f"Bearer {plain}")
    assert seen == [*keys, keys[0]]


def test_a_key_that_was_checked_again_is_no_longer_the_oldest(
    identifier: Identifier, accounts: Accounts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identify, "MAX_TRUSTED", 3)
    again, once, *later = (accounts.keys.create("demo", "ci")[1] for _ in range(4))
    identifier.identify(f"Bearer {again}")
    clock.advance(3)
    identifier.identify(f"Bearer {once}")
    clock.advance(3)
    for plain in (again, *later):
        identifier.identify(f"Bearer {plain}")
    seen = reads(accounts, monkeypatch)
    for plain in (again, once):
        identifier.identify(f"Bearer {plain}")
    assert seen == [once]


def test_memory_holds_hashes_that_are_the_processes_own(
    identifier: Identifier, accounts: Accounts, settings: GatewaySettings, key: str
) -> None:
    another = Identifier(accounts, settings)
    for one in (identifier, another):
        one.identify(f"Bearer {key}")
        assert key not in repr(vars(one))
    assert identifier._trusted.keys().isdisjoint(another._trusted.keys())


# The database gone


def without_a_database(monkeypatch: pytest.MonkeyPatch, accounts: Accounts) -> None:
    """A stand-in for what test_sql_gone.py does with a real server, where a clock can be moved."""

    def gone(_plain: str) -> None:
        raise AccountsUnavailable

    monkeypatch.setattr(accounts.keys, "find", gone)


def test_a_checked_key_holds_for_the_grace_and_no_longer(
    identifier: Identifier, accounts: Accounts, key: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    identifier.identify(f"Bearer {key}")
    without_a_database(monkeypatch, accounts)
    clock.advance(599)
    assert identifier.identify(f"Bearer {key}").tenant == "demo"
    clock.advance(1)
    with pytest.raises(AccountsUnavailable):
        identifier.identify(f"Bearer {key}")


def test_the_grace_does_not_outlast_a_keys_expiry(
    identifier: Identifier, accounts: Accounts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plain = accounts.keys.create("demo", "ci", expires_at=int(clock()) + 60)
    identifier.identify(f"Bearer {plain}")
    without_a_database(monkeypatch, accounts)
    clock.advance(61)
    with pytest.raises(AccountsUnavailable):
        identifier.identify(f"Bearer {plain}")


def test_a_key_that_was_found_revoked_has_no_grace(
    identifier: Identifier, accounts: Accounts, key: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    identifier.identify(f"Bearer {key}")
    accounts.keys.revoke(accounts.keys.find(key).id)
    clock.advance(5)
    with pytest.raises(NotAuthenticated):
        identifier.identify(f"Bearer {key}")
    without_a_database(monkeypatch, accounts)
    with pytest.raises(AccountsUnavailable):
        identifier.identify(f"Bearer {key}")


def test_one_subject_can_be_forgotten_alone(
    identifier: Identifier, accounts: Accounts, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, other = accounts.keys.create("demo", "other")
    for plain in (key, other):
        identifier.identify(f"Bearer {plain}")
    identifier.forget(f"key:{accounts.keys.find(key).id}")
    seen = reads(accounts, monkeypatch)
    for plain in (key, other):
        identifier.identify(f"Bearer {plain}")
    assert seen == [key]


# Rights


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


# Tokens


def test_an_access_token_gives_its_user_the_default_limits(
    identifier: Identifier, accounts: Accounts, app: Flask, ada: dict[str, str]
) -> None:
    with app.app_context():
        principal = identifier.identify(f"Bearer {ada['access_token']}")
    assert principal.subject == f"user:{accounts.users.by_name('ada').id}"
    assert (principal.tenant, principal.scopes) == ("demo", {"inference"})
    assert (principal.limits.requests_per_minute, principal.limits.tokens_per_minute) == (600, 200_000)


def test_an_access_token_expires_even_while_it_is_trusted(
    identifier: Identifier, app: Flask, ada: dict[str, str], clock: Clock
) -> None:
    clock.advance(897)
    with app.app_context():
        identifier.identify(f"Bearer {ada['access_token']}")
        clock.advance(4)
        with pytest.raises(TokenExpired):
            identifier.identify(f"Bearer {ada['access_token']}")


def test_a_refresh_token_is_no_access_token(identifier: Identifier, app: Flask, ada: dict[str, str]) -> None:
    with app.app_context(), pytest.raises(NotAuthenticated, match="access token is needed"):
        identifier.identify(f"Bearer {ada['refresh_token']}")


def test_a_token_of_a_disabled_user_is_refused(
    identifier: Identifier, accounts: Accounts, app: Flask, ada: dict[str, str]
) -> None:
    accounts.users.update(accounts.users.by_name("ada").id, disabled=True)
    with app.app_context(), pytest.raises(NotAuthenticated, match="disabled"):
        identifier.identify(f"Bearer {ada['access_token']}")


def test_a_user_that_was_disabled_and_enabled_must_log_in_again(
    identifier: Identifier, accounts: Accounts, app: Flask, ada: dict[str, str]
) -> None:
    user = accounts.users.by_name("ada").id
    accounts.users.update(user, disabled=True)
    accounts.users.update(user, disabled=False)
    with app.app_context(), pytest.raises(NotAuthenticated, match="revoked"):
        identifier.identify(f"Bearer {ada['access_token']}")


def test_a_new_password_ends_the_tokens_of_the_old(
    identifier: Identifier, accounts: Accounts, app: Flask, ada: dict[str, str]
) -> None:
    accounts.users.update(accounts.users.by_name("ada").id, password="another password")
    with app.app_context(), pytest.raises(NotAuthenticated, match="revoked"):
        identifier.identify(f"Bearer {ada['access_token']}")


def signed(changes: dict[str, Any], *, secret: str = JWT_SECRET, algorithm: str = "HS256", of: str) -> str:
    claims = jwt.decode(of, options={"verify_signature": False})
    claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    return jwt.encode(claims, secret, algorithm=algorithm)


def test_a_token_signed_as_ours_holds(identifier: Identifier, app: Flask, ada: dict[str, str]) -> None:
    """The forgeries below fail by what was changed in them, and not by how they are made."""
    with app.app_context():
        assert identifier.identify(f"Bearer {signed({}, of=ada['access_token'])}").tenant == "demo"


FORGERIES: dict[str, Any] = {
    "another secret": lambda token: signed({}, secret="x" * 40, of=token),
    "another algorithm with our secret": lambda token: signed({}, secret=JWT_SECRET * 2, algorithm="HS512", of=token),
    "no algorithm": lambda token: signed({}, secret="", algorithm="none", of=token),
    "another issuer": lambda token: signed({"iss": "elsewhere"}, of=token),
    "no issuer": lambda token: signed({"iss": None}, of=token),
    "no expiry": lambda token: signed({"exp": None}, of=token),
    "no epoch": lambda token: signed({"epoch": None}, of=token),
    "no user": lambda token: signed({"sub": None}, of=token),
    "a user that does not exist": lambda token: signed({"sub": "0" * 28}, of=token),
    "not yet valid": lambda token: signed({"nbf": int(time.time()) + 60}, of=token),
    "the signature cut off": lambda token: token.rpartition(".")[0] + ".",
    "a changed claim": lambda token: forged_claim(token, "role", "admin"),
    "a header nested too deep": lambda token: encoded(b'{"alg":' + b"[" * 1400) + "." + token.split(".", 1)[1],
    "a header that is no object": lambda token: encoded(b"[]") + "." + token.split(".", 1)[1],
    "a header that is no JSON": lambda token: encoded(b"\xff") + "." + token.split(".", 1)[1],
}


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def forged_claim(token: str, name: str, value: str) -> str:
    header, _, signature = token.split(".")
    claims = {**jwt.decode(token, options={"verify_signature": False}), name: value}
    return f"{header}.{encoded(json.dumps(claims).encode())}.{signature}"


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_token_is_refused(identifier: Identifier, app: Flask, ada: dict[str, str], forgery: str) -> None:
    token = FORGERIES[forgery](ada["access_token"])
    # Not refused as malformed: each gets as far as to the check that it is made for.
    with app.app_context(), pytest.raises(NotAuthenticated, match="token") as refused:
        identifier.identify(f"Bearer {token}")
    assert "malformed" not in refused.value.message
    assert token not in refused.value.message


GARBAGE = st.one_of(
    st.text(max_size=200),
    st.text(st.characters(max_codepoint=255), max_size=200).map(lambda text: f"Bearer {text}"),
    st.text("abz27-_.=+/~", max_size=200).map(lambda text: f"Bearer fb-{text}"),
    st.lists(st.binary(max_size=60).map(encoded), min_size=3, max_size=3).map(lambda p: "Bearer " + ".".join(p)),
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
    .map(lambda value: encoded(json.dumps(value).encode()))
    .map(lambda part: f"Bearer {part}.{part}.{part}"),
)


@given(header=GARBAGE)
@example(header="Bearer " + "a" * 9000)
@example(header="Bearer " + "." * 2)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
def test_garbage_is_never_anything_but_not_authenticated(identifier: Identifier, app: Flask, header: str) -> None:
    with app.app_context(), pytest.raises(NotAuthenticated):
        identifier.identify(header)


@given(header=st.binary(max_size=200).filter(lambda raw: b"\n" not in raw and b"\r" not in raw))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_garbage_bytes_in_the_header_are_answered_401(client: FlaskClient, header: bytes) -> None:
    answer = client.get("/whoami", environ_overrides={"HTTP_AUTHORIZATION": header.decode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.get_json()["error"]["code"] == "invalid_api_key"


# Scopes


def test_who_has_the_scope_passes_and_who_has_not_is_forbidden(identifier: Identifier, key: str) -> None:
    principal = identifier.identify(f"Bearer {key}")
    require(principal, "inference")
    with pytest.raises(Forbidden, match="admin"):
        require(principal, "admin")
