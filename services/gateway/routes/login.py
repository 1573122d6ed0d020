"""`POST /login`, `/refresh` and `/logout`: JWTs for people, beside the API keys for programs.

The access token is good for minutes and is what the other routes take; the refresh token is good for days, gives the
next pair, and is spent by it (rotation, RFC 9700 section 4.14.2). Guessing passwords is slowed down by user name, one
that exists or not, and by address.
"""

from __future__ import annotations

import math
import time
from hashlib import blake2b

from flask import Blueprint, Flask, Request, Response, jsonify, request
from pydantic import Field

from services.cache.throttle import Account, Throttle
from services.common.errors import ApiError, InvalidCredentials, NotAuthenticated, RateLimited
from services.common.metrics import GatewayMetrics
from services.common.settings import IdentitySettings
from services.common.wire import WireModel, parse_json, validate
from services.gateway.accounts import Accounts, User
from services.gateway.identify import Identifier, bearer
from services.gateway.identity.address import client_address, neighbourhood
from services.gateway.identity.tokens import new_pair, prepare, read_token, token_user


class LoginRequest(WireModel):
    username: str = Field(min_length=1, max_length=256)
    # Bounded, since argon2 reads all of it.
    password: str = Field(min_length=1, max_length=1024)


class LogoutRequest(WireModel):
    refresh_token: str | None = Field(None, max_length=4096)


def register(
    app: Flask,
    accounts: Accounts,
    identifier: Identifier,
    settings: IdentitySettings,
    *,
    throttle: Throttle,
    metrics: GatewayMetrics | None = None,
) -> None:
    """Gives the application its tokens, which `identify` reads too, and the three routes."""
    prepare(app, settings)
    app.register_blueprint(blueprint(accounts, identifier, settings, throttle, metrics))


def blueprint(
    accounts: Accounts,
    identifier: Identifier,
    settings: IdentitySettings,
    throttle: Throttle,
    metrics: GatewayMetrics | None,
) -> Blueprint:
    """The three routes. They work in an application that `register` has prepared."""
    routes = Blueprint("login", __name__)

    def count(outcome: str) -> None:
        if metrics is not None:
            metrics.logins.labels(outcome).inc()

    @routes.post("/login")
    def login() -> Response:
        given = validate(LoginRequest, parse_json(request.get_data()))
        charged = _charged(settings, given.username, request)
        wait = throttle.take(charged)
        if wait:
            count("throttled")
            seconds = math.ceil(wait)
            raise RateLimited(f"There were too many attempts to log in. Try again in {seconds} s.", retry_after=wait)
        try:
            user = accounts.users.verify(given.username, given.password)
        except ApiError:
            throttle.give_back(charged)
            raise
        if user is None:
            count("wrong")
            raise InvalidCredentials("The user name or the password is wrong.")
        throttle.give_back(charged)
        count("ok")
        return _pair(user, settings)

    @routes.post("/refresh")
    def refresh() -> Response:
        claims = read_token(_credential(), "refresh", now=time.time())
        user = token_user(accounts, claims)
        if not accounts.revoked.add(claims.jti, claims.expires_at):
            # Two came with it at once, and the other has the new pair.
            raise NotAuthenticated("The refresh token has been used already. Log in again with POST /login.")
        return _pair(user, settings)

    @routes.post("/logout")
    def logout() -> Response:
        claims = read_token(_credential(), "access", now=time.time())
        token_user(accounts, claims)
        body = request.get_data()
        given = validate(LogoutRequest, parse_json(body) if body else {})
        accounts.revoked.add(claims.jti, claims.expires_at)
        if given.refresh_token is not None:
            _revoke_refresh(accounts, given.refresh_token, claims.user)
        identifier.forget(f"user:{claims.user}")
        return Response(status=204)

    return routes


def _credential() -> str:
    return bearer(request.headers.get("Authorization"))


def _charged(settings: IdentitySettings, username: str, request: Request) -> tuple[Account, Account]:
    """Whose attempt a log-in is: the user name's, of which a hash is enough, and the address'."""
    name = blake2b(username.encode(), digest_size=16).hexdigest()
    address = neighbourhood(client_address(request, settings.trusted_proxies))
    return (
        Account(f"user:{name}", settings.login_attempts_per_user, settings.login_window),
        Account(f"address:{address}", settings.login_attempts_per_address, settings.login_window),
    )


def _pair(user: User, settings: IdentitySettings) -> Response:
    """A new access and refresh token, as RFC 6749 section 5.1 words and guards them."""
    access_token, refresh_token = new_pair(user, settings)
    response = jsonify(
        access_token=access_token,
        refresh_token=refresh_token,
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
        accounts.revoked.add(claims.jti, claims.expires_at)
