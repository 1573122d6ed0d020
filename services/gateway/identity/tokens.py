"""Our own tokens: JWTs (RFC 7519) signed with HS256 and nothing else, by the secret that their `kid` names.

A `kid` is a hash of its secret, so that nobody has to name secrets. A new secret comes into use by being `jwt_secret`
while the old one goes on to be accepted as one of `jwt_former_secrets`, until the last refresh token of it has expired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from flask import Flask
from flask_jwt_extended import JWTManager, create_access_token, create_refresh_token, decode_token
from flask_jwt_extended.exceptions import JWTExtendedException
from jwt import InvalidKeyError, PyJWTError

from services.common.errors import NotAuthenticated, TokenExpired
from services.common.settings import IdentitySettings
from services.gateway.accounts import Accounts, User
from services.gateway.accounts.credentials import keyed_hash

ISSUER = "forebay"
ALGORITHM = "HS256"


@dataclass(frozen=True)
class Claims:
    """What a JWT of ours says. `expires_at` is in Unix seconds."""

    user: str
    epoch: int
    jti: str
    expires_at: int


def key_id(secret: str) -> str:
    """The `kid` of a secret, which does not tell it."""
    return keyed_hash(secret, "kid", "")[:16]


def prepare(app: Flask, settings: IdentitySettings) -> None:
    """Gives the application its secrets and the times of its tokens."""
    current = settings.jwt_secret.get_secret_value()
    secrets = {key_id(secret): secret for secret in (*settings.former_secrets(), current)}
    app.config.update(
        JWT_SECRET_KEY=current,
        JWT_ALGORITHM=ALGORITHM,
        JWT_DECODE_ALGORITHMS=[ALGORITHM],
        JWT_ENCODE_ISSUER=ISSUER,
        JWT_DECODE_ISSUER=ISSUER,
        JWT_TOKEN_LOCATION=["headers"],
        JWT_ACCESS_TOKEN_EXPIRES=timedelta(seconds=settings.access_token_ttl),
        JWT_REFRESH_TOKEN_EXPIRES=timedelta(seconds=settings.refresh_token_ttl),
    )

    @JWTManager(app).decode_key_loader
    def _secret(header: Mapping[str, Any], _claims: Mapping[str, Any]) -> str:
        # A token of the time before there were ids has none.
        secret = secrets.get(header["kid"]) if isinstance(header.get("kid"), str) else None
        if secret is None and "kid" in header:
            raise InvalidKeyError("no secret has this id")
        return secret or current


def new_pair(user: User, settings: IdentitySettings) -> tuple[str, str]:
    """An access token and a refresh token. Needs an application context."""
    claims: dict[str, Any] = {"tenant": user.tenant_id, "role": user.role, "epoch": user.token_epoch}
    header = {"kid": key_id(settings.jwt_secret.get_secret_value())}
    return (
        create_access_token(user.id, additional_claims=claims, additional_headers=header),
        create_refresh_token(user.id, additional_claims=claims, additional_headers=header),
    )


def read_token(token: str, kind: Literal["access", "refresh"], *, now: float) -> Claims:
    """The claims of a JWT whose signature, algorithm, issuer, type and time are right. Needs an application context.

    Whether it was revoked, and whether its user may still come in, is for `token_user`.

    Raises:
        TokenExpired: its time is over.
        NotAuthenticated: it is not a token of ours, or of the other kind.
    """
    try:
        # The expiry is looked at below, by the clock that was handed in.
        found = decode_token(token, allow_expired=True)
        claims = Claims(found["sub"], int(found["epoch"]), str(found["jti"]), int(found["exp"]))
    except (PyJWTError, JWTExtendedException, KeyError, TypeError, ValueError):
        raise NotAuthenticated("The token is not valid. Log in again with POST /login.") from None
    if found["type"] != kind:
        raise NotAuthenticated(f"This is not the right token: the {kind} token is needed here.")
    if claims.expires_at <= now:
        raise TokenExpired(f"The {kind} token has expired.")
    return claims


def token_user(accounts: Accounts, claims: Claims) -> User:
    """The user of a token that still holds.

    Raises:
        NotAuthenticated: the token was revoked, or its user is disabled, gone or has a new password.
    """
    user = accounts.users.by_id(claims.user)
    if user is None or user.disabled:
        raise NotAuthenticated("The user of this token is disabled or does not exist any more.")
    if user.token_epoch != claims.epoch or accounts.revoked.has(claims.jti):
        raise NotAuthenticated("The token has been revoked. Log in again with POST /login.")
    return user
