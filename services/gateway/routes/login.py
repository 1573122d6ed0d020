"""`POST /login`, `/refresh` and `/logout`: JWTs for people, beside the API keys for programs.

A token is a JWT (RFC 7519) signed with HS256 and nothing else. The access token is good for minutes and is what the
other routes take; the refresh token is good for days, gives the next pair, and is spent by it (rotation, RFC 9700
section 4.14.2).
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from flask import Blueprint, Flask, Response, jsonify, request
from flask_jwt_extended import JWTManager, create_access_token, create_refresh_token
from pydantic import Field

from services.common.errors import InvalidCredentials, NotAuthenticated
from services.common.settings import GatewaySettings
from services.common.wire import WireModel, parse_json, validate
from services.gateway.accounts import Accounts, User
from services.gateway.identify import Identifier, bearer, read_token, token_user

ISSUER = "forebay"
ALGORITHM = "HS256"


class LoginRequest(WireModel):
    username: str = Field(min_length=1, max_length=256)
    # Bounded, since argon2 reads all of it.
    password: str = Field(min_length=1, max_length=1024)


class LogoutRequest(WireModel):
    refresh_token: str | None = Field(None, max_length=4096)


def register(app: Flask, accounts: Accounts, identifier: Identifier, settings: GatewaySettings) -> None:
    """Gives the application its tokens, which `identify` reads too, and the three routes."""
    app.config.update(
        JWT_SECRET_KEY=settings.jwt_secret.get_secret_value(),
        JWT_ALGORITHM=ALGORITHM,
        JWT_DECODE_ALGORITHMS=[ALGORITHM],
        JWT_ENCODE_ISSUER=ISSUER,
        JWT_DECODE_ISSUER=ISSUER,
        JWT_TOKEN_LOCATION=["headers"],
        JWT_ACCESS_TOKEN_EXPIRES=timedelta(seconds=settings.access_token_ttl),
        JWT_REFRESH_TOKEN_EXPIRES=timedelta(seconds=settings.refresh_token_ttl),
    )
    JWTManager(app)
    app.register_blueprint(blueprint(accounts, identifier, settings))


def blueprint(accounts: Accounts, identifier: Identifier, settings: GatewaySettings) -> Blueprint:
    """The three routes. They work in an application that `register` has prepared."""
    routes = Blueprint("login", __name__)

    @routes.post("/login")
    def login() -> Response:
        given = validate(LoginRequest, parse_json(request.get_data()))
        user = accounts.verify_user(given.username, given.password)
        if user is None:
            raise InvalidCredentials("The user name or the password is wrong.")
        return _pair(user, settings)

    @routes.post("/refresh")
    def refresh() -> Response:
        claims = read_token(_credential(), "refresh", now=time.time())
        user = token_user(accounts, claims)
        if not accounts.revoke_token(claims.jti, claims.expires_at):
            # Two came with it at once, and the other has the new pair.
            raise NotAuthenticated("The refresh token has been used already. Log in again with POST /login.")
        return _pair(user, settings)

    @routes.post("/logout")
    def logout() -> Response:
        claims = read_token(_credential(), "access", now=time.time())
        token_user(accounts, claims)
        body = request.get_data()
        given = validate(LogoutRequest, parse_json(body) if body else {})
        accounts.revoke_token(claims.jti, claims.expires_at)
        if given.refresh_token is not None:
            _revoke_refresh(accounts, given.refresh_token, claims.user)
        identifier.forget()
        return Response(status=204)

    return routes


def _credential() -> str:
    return bearer(request.headers.get("Authorization"))


def _pair(user: User, settings: GatewaySettings) -> Response:
    """A new access and refresh token, as RFC 6749 section 5.1 words and guards them."""
    claims: dict[str, Any] = {"tenant": user.tenant_id, "role": user.role, "epoch": user.token_epoch}
    response = jsonify(
        access_token=create_access_token(user.id, additional_claims=claims),
        refresh_token=create_refresh_token(user.id, additional_claims=claims),
        token_type="Bearer",  # noqa: S106
        expires_in=settings.access_token_ttl,
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _revoke_refresh(accounts: Accounts, token: str, user: str) -> None:
    """Revokes the user's refresh token; one that does not hold anyway is no error (RFC 7009 section 2.2)."""
    try:
        claims = read_token(token, "refresh", now=time.time())
    except NotAuthenticated:
        return
    if claims.user == user:
        accounts.revoke_token(claims.jti, claims.expires_at)
