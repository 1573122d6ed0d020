"""Tokens of an outside issuer: which hold, whose they are, and how often the issuer is asked for its keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import Flask
from pydantic import ValidationError

from services.common.errors import Forbidden, IssuerUnavailable, NotAuthenticated, TokenExpired
from services.common.settings import GatewaySettings
from services.gateway.accounts import Accounts
from services.gateway.identify import Identifier, Principal, require
from services.gateway.identity.jwks import KEPT
from tests.unit.gateway.conftest import JWT_SECRET, KEY_SECRET, Clock
from tests.unit.gateway.issuer import AUDIENCE, Issuer, running_issuer

Identify = Callable[..., Principal]


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer() as running:
        running.new_key("one")
        yield running


@pytest.fixture
def made(app: Flask, accounts: Accounts, settings: GatewaySettings, issuer: Issuer, clock: Clock) -> Callable[..., Any]:
    """Makes what identifies; keyword arguments are further settings by their names."""

    def make(**changes: Any) -> Identify:
        values = {"oidc_issuer": issuer.url, "oidc_audience": [AUDIENCE], "oidc_scopes": {"llm-users": ["inference"]}}
        identifier = Identifier(
            accounts, settings.model_copy(update={**values, **changes}), clock=clock, monotonic=clock
        )

        def identify(token: str) -> Principal:
            with app.app_context():
                return identifier.identify(f"Bearer {token}")

        return identify

    return make


@pytest.fixture
def identify(made: Callable[..., Identify]) -> Identify:
    return made()


# Whose


def test_a_token_gives_its_tenant_and_the_scopes_of_its_groups(
    identify: Identify, issuer: Issuer, accounts: Accounts
) -> None:
    principal = identify(issuer.token("one"))
    assert (principal.tenant, principal.tenant_id) == ("demo", accounts.tenants.get("demo").id)
    assert principal.scopes == {"inference"}
    assert principal.limits.requests_per_minute == 600


def test_a_subject_is_the_same_in_each_token_and_does_not_tell_the_name(identify: Identify, issuer: Issuer) -> None:
    first, again = identify(issuer.token("one")), identify(issuer.token("one", jti="another"))
    assert first.subject == again.subject != identify(issuer.token("one", sub="eve")).subject
    assert first.subject.startswith("oidc:")
    assert "ada" not in first.subject


def test_the_tenant_is_what_the_map_makes_of_the_claim(made: Callable[..., Identify], issuer: Issuer) -> None:
    identify = made(oidc_tenant_claim="hd", oidc_tenants={"acme.com": "demo"})
    assert identify(issuer.token("one", tenant=None, hd="acme.com")).tenant == "demo"
    with pytest.raises(Forbidden, match="names no tenant"):
        identify(issuer.token("one", hd="elsewhere.com"))
    with pytest.raises(Forbidden, match="'hd'"):
        identify(issuer.token("one", hd=None))


def test_a_star_places_whoever_is_not_named(made: Callable[..., Identify], issuer: Issuer) -> None:
    identify = made(oidc_tenants={"*": "demo"}, oidc_scopes={"*": ["inference"], "admins": ["admin"]})
    assert identify(issuer.token("one", tenant=None, groups=None)).scopes == {"inference"}
    assert identify(issuer.token("one", tenant="x", groups=["admins"])).scopes == {"inference", "admin"}


def test_claims_may_lie_within_others_and_be_words_in_a_text(made: Callable[..., Identify], issuer: Issuer) -> None:
    scopes = {"llm-users": ["inference"]}
    identify = made(oidc_scope_claim="realm_access.roles", oidc_scopes=scopes)
    assert identify(issuer.token("one", realm_access={"roles": ["x", "llm-users"]})).scopes == {"inference"}
    identify = made(oidc_scope_claim="https://acme.com/scope", oidc_scopes=scopes)
    assert identify(issuer.token("one", **{"https://acme.com/scope": "openid llm-users"})).scopes == {"inference"}


@pytest.mark.parametrize("groups", [None, [], "", 5, {"llm-users": 1}, [["llm-users"]], ["LLM-USERS"]])
def test_whose_groups_are_not_in_the_map_may_nothing(identify: Identify, issuer: Issuer, groups: Any) -> None:
    with pytest.raises(Forbidden):
        require(identify(issuer.token("one", groups=groups)), "inference")


def test_the_platform_is_only_reached_by_the_map(made: Callable[..., Identify], issuer: Issuer) -> None:
    with pytest.raises(Forbidden):
        made()(issuer.token("one", tenant="platform"))
    assert made(oidc_tenants={"ops": "platform"})(issuer.token("one", tenant="ops")).tenant == "platform"


def test_a_tenant_must_exist_unless_it_may_be_made(
    made: Callable[..., Identify], issuer: Issuer, accounts: Accounts
) -> None:
    with pytest.raises(Forbidden, match="does not exist"):
        made()(issuer.token("one", tenant="acme"))
    making = made(oidc_create_tenants=True)
    assert making(issuer.token("one", tenant="acme")).tenant_id == accounts.tenants.get("acme").id
    with pytest.raises(Forbidden, match="name of a tenant"):
        making(issuer.token("one", tenant="No_Name"))


def test_a_disabled_tenants_people_are_refused(identify: Identify, issuer: Issuer, accounts: Accounts) -> None:
    accounts.tenants.update("demo", disabled=True)
    with pytest.raises(Forbidden, match="disabled"):
        identify(issuer.token("one"))


# What holds


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS256", "ES256", "EdDSA"])
def test_every_asymmetric_algorithm_is_read(identify: Identify, issuer: Issuer, algorithm: str) -> None:
    issuer.new_key("other", algorithm)
    assert identify(issuer.token("other")).tenant == "demo"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://elsewhere.example"},
        {"iss": None},
        {"aud": "another-service"},
        {"aud": None},
        {"sub": None},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": int(time.time()) + 24 * 3600},
    ],
    ids=str,
)
def test_a_token_with_a_wrong_claim_is_refused(identify: Identify, issuer: Issuer, changes: dict[str, Any]) -> None:
    with pytest.raises(NotAuthenticated, match="not one of the issuer"):
        identify(issuer.token("one", **changes))


def test_one_of_several_audiences_is_enough(identify: Identify, issuer: Issuer) -> None:
    assert identify(issuer.token("one", aud=["another-service", AUDIENCE])).tenant == "demo"


def test_an_expired_token_is_told_apart_even_while_it_is_trusted(
    identify: Identify, issuer: Issuer, clock: Clock
) -> None:
    token = issuer.token("one", exp=int(clock()) + 3)
    identify(token)
    clock.advance(4)
    with pytest.raises(TokenExpired):
        identify(token)


def public_pem(issuer: Issuer) -> str:
    public = issuer.private_key("one").public_key()
    return str(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def hmac_under(secret: str, issuer: Issuer) -> str:
    """A token signed with HMAC, made by hand: the library refuses to take a public key for a secret."""
    claims = jwt.decode(issuer.token("one"), options={"verify_signature": False})
    unsigned = jwt.encode(claims, "x" * 32, algorithm="HS256", headers={"kid": "one"}).rpartition(".")[0]
    algorithm = jwt.get_algorithm_by_name("HS256")
    signature = algorithm.sign(unsigned.encode(), secret.encode())
    return f"{unsigned}.{jwt.utils.base64url_encode(signature).decode()}"


def test_a_public_key_is_no_secret(identify: Identify, issuer: Issuer) -> None:
    with pytest.raises(NotAuthenticated):
        identify(hmac_under(public_pem(issuer), issuer))


def test_our_own_secret_signs_nothing_in_the_issuers_name(identify: Identify, issuer: Issuer) -> None:
    with pytest.raises(NotAuthenticated):
        identify(hmac_under(JWT_SECRET, issuer))


def test_a_token_without_a_signature_is_refused(identify: Identify, issuer: Issuer) -> None:
    claims = jwt.decode(issuer.token("one"), options={"verify_signature": False})
    with pytest.raises(NotAuthenticated):
        identify(jwt.encode(claims, "", algorithm="none", headers={"kid": "one"}))
    with pytest.raises(NotAuthenticated):
        identify(issuer.token("one").rpartition(".")[0] + ".")


def test_a_key_of_another_kind_than_the_token_says_is_not_used(identify: Identify, issuer: Issuer) -> None:
    issuer.new_key("curve", "ES256")
    with pytest.raises(NotAuthenticated, match="algorithm"):
        identify(issuer.token("one", headers={"kid": "curve"}))


def test_a_key_for_one_algorithm_is_not_used_for_another(identify: Identify, issuer: Issuer) -> None:
    issuer.published[0]["alg"] = "RS512"
    with pytest.raises(NotAuthenticated, match="algorithm"):
        identify(issuer.token("one"))


@pytest.mark.parametrize(
    "broken",
    [{"n": "!!"}, {"n": 5}, {"n": None}, {"e": ""}, {"kty": "EC"}, {"kty": "EC", "crv": "P-0", "x": "", "y": ""}],
)
def test_a_key_that_can_not_be_read_verifies_nothing(
    identify: Identify, issuer: Issuer, broken: dict[str, Any]
) -> None:
    issuer.published[0] |= broken
    with pytest.raises(NotAuthenticated):
        identify(issuer.token("one"))


def test_a_token_does_not_bring_its_own_key(identify: Identify, issuer: Issuer) -> None:
    with running_issuer() as stranger:
        stranger.new_key("one")
        forged = stranger.token(
            "one",
            iss=issuer.url,
            headers={"jwk": stranger.published[0], "jku": f"{stranger.url}/keys", "x5u": f"{stranger.url}/keys"},
        )
        with pytest.raises(NotAuthenticated):
            identify(forged)
        assert stranger.requests == []


def test_keys_for_encryption_and_secrets_are_not_keys(identify: Identify, issuer: Issuer) -> None:
    issuer.published[0]["use"] = "enc"
    issuer.published.append({"kty": "oct", "kid": "secret", "k": "c2VjcmV0"})
    with pytest.raises(NotAuthenticated, match="does not have"):
        identify(issuer.token("one"))
    with pytest.raises(NotAuthenticated, match="does not have"):
        identify(issuer.token("one", headers={"kid": "secret"}))


def test_a_token_may_leave_the_key_unnamed_where_there_is_only_one(
    identify: Identify, issuer: Issuer, clock: Clock
) -> None:
    assert identify(issuer.token("one", headers={"kid": None})).tenant == "demo"
    issuer.new_key("two")
    clock.advance(300)
    with pytest.raises(NotAuthenticated):
        identify(issuer.token("one", headers={"kid": None}, exp=int(clock()) + 60))


def test_without_an_issuer_in_the_settings_no_such_token_holds(made: Callable[..., Identify], issuer: Issuer) -> None:
    with pytest.raises(NotAuthenticated):
        made(oidc_issuer=None)(issuer.token("one"))
    assert issuer.requests == []


# Keys


def test_keys_are_fetched_once_and_kept(identify: Identify, issuer: Issuer, clock: Clock) -> None:
    for number in range(20):
        identify(issuer.token("one", jti=str(number), exp=int(clock()) + 60))
        clock.advance(10)
    assert issuer.requests == ["/.well-known/openid-configuration", "/keys"]


def test_a_new_key_is_fetched_when_a_token_names_it(identify: Identify, issuer: Issuer, clock: Clock) -> None:
    identify(issuer.token("one"))
    issuer.new_key("two")
    clock.advance(11)
    assert identify(issuer.token("two")).tenant == "demo"


def test_a_withdrawn_key_is_good_until_the_keys_are_fetched_anew(
    identify: Identify, issuer: Issuer, clock: Clock
) -> None:
    identify(issuer.token("one"))
    issuer.new_key("two")
    issuer.withdraw("one")
    clock.advance(200)
    later = int(clock()) + 600
    assert identify(issuer.token("one", exp=later)).tenant == "demo"
    clock.advance(101)
    with pytest.raises(NotAuthenticated, match="does not have"):
        identify(issuer.token("one", exp=later, jti="another"))


def test_made_up_key_ids_do_not_flood_the_issuer(made: Callable[..., Identify], issuer: Issuer, clock: Clock) -> None:
    identify = made(oidc_refetch_interval=10.0, oidc_jwks_uri=f"{issuer.url}/keys")
    for number in range(200):
        with pytest.raises(NotAuthenticated):
            identify(issuer.token("one", headers={"kid": f"made-up-{number}"}))
        clock.advance(0.1)  # 20 seconds in all
    assert issuer.requests == ["/keys"] * 2


def test_many_at_once_fetch_the_keys_once(made: Callable[..., Identify], issuer: Issuer) -> None:
    identify = made(oidc_jwks_uri=f"{issuer.url}/keys")
    issuer.held.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(identify, issuer.token("one", jti=str(number))) for number in range(8)]
        while not issuer.requests:
            time.sleep(0.001)
        issuer.held.set()
        assert {future.result().tenant for future in asked} == {"demo"}
    assert issuer.requests == ["/keys"]


def test_known_keys_hold_while_the_issuer_is_down(identify: Identify, issuer: Issuer, clock: Clock) -> None:
    identify(issuer.token("one"))
    issuer.status = 500
    clock.advance(3600)
    later = int(clock()) + 2 * int(KEPT)
    assert identify(issuer.token("one", exp=later)).tenant == "demo"
    clock.advance(KEPT)
    with pytest.raises(IssuerUnavailable):
        identify(issuer.token("one", exp=later, jti="another"))


def test_a_key_that_is_not_known_while_the_issuer_is_down_is_a_503(
    identify: Identify, issuer: Issuer, clock: Clock
) -> None:
    issuer.status = 500
    with pytest.raises(IssuerUnavailable) as refused:
        identify(issuer.token("one"))
    assert refused.value.status == 503
    wait = int(refused.value.headers["Retry-After"])
    issuer.status = 200
    clock.advance(wait)
    assert identify(issuer.token("one")).tenant == "demo"


@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://elsewhere.example"},
        {"jwks_uri": None},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "ftp://127.0.0.1/keys"},
    ],
    ids=str,
)
def test_a_discovery_document_that_is_not_the_issuers_own_gives_no_keys(
    identify: Identify, issuer: Issuer, discovery: dict[str, Any]
) -> None:
    issuer.discovery |= discovery
    with pytest.raises(IssuerUnavailable):
        identify(issuer.token("one"))


# Settings


@pytest.mark.parametrize(
    "values",
    [
        {"oidc_issuer": "https://id.example"},
        {"oidc_issuer": "http://id.example", "oidc_audience": "a"},
        {"oidc_issuer": "https://id.example", "oidc_audience": "a", "oidc_jwks_uri": "http://id.example/keys"},
        {"oidc_issuer": "https://id.example", "oidc_audience": "a", "oidc_scopes": {"x": ["root"]}},
    ],
    ids=str,
)
def test_settings_that_would_trust_too_much_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"oidc|https|inference"):
        GatewaySettings(jwt_secret=JWT_SECRET, key_secret=KEY_SECRET, **values)


def test_settings_take_several_audiences() -> None:
    made = GatewaySettings(
        jwt_secret=JWT_SECRET, key_secret=KEY_SECRET, oidc_issuer="https://id.example", oidc_audience="a, b"
    )
    assert made.oidc_audience == ["a", "b"]
