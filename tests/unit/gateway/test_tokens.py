"""Our own tokens when their secret changes: which `kid` they name, which are still taken, and no other algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from flask import Flask
from pydantic import SecretStr, ValidationError

from services.common.errors import NotAuthenticated
from services.common.settings import GatewaySettings
from services.gateway.accounts import Accounts, User
from services.gateway.identity.tokens import Claims, key_id, new_pair, prepare, read_token
from tests.unit.gateway.conftest import KEY_SECRET, PASSWORD
from tests.unit.gateway.issuer import Issuer

OLD, NEW, NEWER = "o" * 40, "n" * 40, "m" * 40


def settings(secret: str, *former: str) -> GatewaySettings:
    return GatewaySettings(
        jwt_secret=SecretStr(secret),
        key_secret=SecretStr(KEY_SECRET),
        jwt_former_secrets=SecretStr(" ".join(former)) if former else None,
    )


@pytest.fixture
def user(accounts: Accounts) -> User:
    return accounts.users.create("demo", "ada", PASSWORD)


@pytest.fixture
def made(user: User) -> Callable[..., str]:
    """An access token of a gateway with these secrets."""

    def make(secret: str, *former: str) -> str:
        app = Flask("made")
        prepare(app, settings(secret, *former))
        with app.app_context():
            return new_pair(user, settings(secret, *former))[0]

    return make


def read(token: str, secret: str, *former: str) -> Claims:
    """What a gateway with these secrets reads."""
    app = Flask("read")
    prepare(app, settings(secret, *former))
    with app.app_context():
        return read_token(token, "access", now=time.time())


def resigned(token: str, secret: str, header: dict[str, Any]) -> str:
    claims = jwt.decode(token, options={"verify_signature": False})
    return jwt.encode(claims, secret, algorithm="HS256", headers=header)


def test_a_token_names_its_secret_and_does_not_tell_it(made: Callable[..., str]) -> None:
    named = jwt.get_unverified_header(made(NEW))["kid"]
    assert named == key_id(NEW) != key_id(OLD)
    assert named not in NEW


def test_a_former_secret_is_still_taken_and_signs_nothing_new(made: Callable[..., str], user: User) -> None:
    assert read(made(OLD), NEW, OLD).user == user.id
    assert read(made(OLD), NEWER, NEW, OLD).user == user.id
    assert jwt.get_unverified_header(made(NEW, OLD))["kid"] == key_id(NEW)


def test_a_gateway_that_has_the_new_secret_only_as_a_former_one_reads_it_too(made: Callable[..., str]) -> None:
    """So that a rolling update can bring a secret everywhere before anybody signs with it."""
    assert read(made(NEW, OLD), OLD, NEW)


def test_a_secret_that_is_gone_from_the_settings_is_no_longer_taken(made: Callable[..., str]) -> None:
    with pytest.raises(NotAuthenticated):
        read(made(OLD), NEW)


def test_a_token_of_the_time_before_there_were_ids_is_read_by_the_current_secret(made: Callable[..., str]) -> None:
    unnamed = resigned(made(NEW), NEW, {})
    assert "kid" not in jwt.get_unverified_header(unnamed)
    assert read(unnamed, NEW, OLD)
    with pytest.raises(NotAuthenticated):
        read(resigned(made(OLD), OLD, {}), NEW, OLD)


@pytest.mark.parametrize("kid", ["", "x", key_id(OLD), "../../etc/passwd", "' OR 1=1 --"])
def test_a_token_under_the_right_secret_with_a_wrong_id_is_refused(made: Callable[..., str], kid: str) -> None:
    with pytest.raises(NotAuthenticated):
        read(resigned(made(NEW), NEW, {"kid": kid}), NEW, OLD)


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_no_other_algorithm_is_taken_though_the_secret_is_right(made: Callable[..., str], algorithm: str) -> None:
    claims = jwt.decode(made(NEW * 2), options={"verify_signature": False})
    with pytest.raises(NotAuthenticated):
        read(jwt.encode(claims, NEW * 2, algorithm=algorithm, headers={"kid": key_id(NEW * 2)}), NEW * 2)


def test_a_token_signed_with_a_key_pair_is_none_of_ours(made: Callable[..., str]) -> None:
    issuer = Issuer("forebay")
    issuer.new_key(key_id(NEW))
    claims = jwt.decode(made(NEW), options={"verify_signature": False})
    with pytest.raises(NotAuthenticated):
        read(issuer.token(key_id(NEW), **claims), NEW)


@pytest.mark.parametrize("former", ["short", f"{OLD},short", f"{OLD} {NEW[:31]}"])
def test_a_short_former_secret_is_refused_without_being_shown(former: str) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(NEW, former)
    assert "jwt_former_secrets" in str(refused.value)
    assert former not in str(refused.value)


def test_former_secrets_may_be_written_in_lines_and_with_commas() -> None:
    assert settings(NEW, f"{OLD},\n{NEWER}\n").former_secrets() == [OLD, NEWER]
