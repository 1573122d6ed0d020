"""Whose a log-in token is, when it ends, and that nothing forged and no garbage is taken for one."""

from __future__ import annotations

import base64
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

from services.common.errors import NotAuthenticated, TokenExpired
from services.gateway.accounts import Accounts
from services.gateway.identify import Identifier
from tests.unit.gateway.conftest import JWT_SECRET, PASSWORD, Clock


@pytest.fixture
def ada(accounts: Accounts, client: FlaskClient) -> dict[str, str]:
    """Tokens of a plain user of the tenant `demo`."""
    accounts.users.create("demo", "ada", PASSWORD)
    return client.post("/login", json={"username": "ada", "password": PASSWORD}).get_json()


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
