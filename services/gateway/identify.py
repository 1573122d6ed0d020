"""Step 1 of a request: whose it is. An `Authorization` header becomes a `Principal`, or the request ends with 401.

A credential is an API key (`fb-…`) or an access token of `POST /login`. One that was checked is trusted for
`identity_ttl` seconds without a look into the database, which is therefore also the longest that a revocation takes.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock
from typing import Literal

from flask_jwt_extended import decode_token
from flask_jwt_extended.exceptions import JWTExtendedException
from jwt import PyJWTError

from services.common.errors import Forbidden, NotAuthenticated, TokenExpired
from services.common.settings import GatewaySettings
from services.gateway.accounts import Accounts, User

MAX_TRUSTED = 10_000
"""Credentials that a process remembers, about 5 MB of them."""

# The characters of a token after RFC 6750 section 2.1. Longer than any credential of ours is refused unread.
_BEARER = re.compile(r"\s*bearer\s+([A-Za-z0-9._~+/=-]{1,4096})\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Principal:
    """Who makes the request, and what it may. `tenant` is a slug, fit for a metric label; `subject` is what the quotas
    count on, `key:<id>` or `user:<id>`; `cache_salt` keys the response cache and the pods' KV prefix cache."""

    tenant: str
    subject: str
    scopes: frozenset[str]
    requests_per_minute: int
    tokens_per_minute: int
    cache_salt: str


@dataclass(frozen=True)
class Claims:
    """What a JWT of ours says. `expires_at` is in Unix seconds."""

    user: str
    epoch: int
    jti: str
    expires_at: int


def require(principal: Principal, scope: str) -> None:
    """Lets the principal pass who has the scope.

    Raises:
        Forbidden: it has not.
    """
    if scope not in principal.scopes:
        raise Forbidden(f"Your credential does not have the scope '{scope}', which this needs.")


def bearer(authorization: str | None) -> str:
    """The credential of an `Authorization` header.

    Raises:
        NotAuthenticated: there is none, or not of the form `Bearer <credential>`.
    """
    if not authorization:
        raise NotAuthenticated("You did not provide an API key. Send it as 'Authorization: Bearer <key>'.")
    match = _BEARER.fullmatch(authorization)
    if match is None:
        raise NotAuthenticated("The Authorization header is malformed: it must be 'Bearer <key or token>'.")
    return match[1]


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
    user = accounts.user(claims.user)
    if user is None or user.disabled:
        raise NotAuthenticated("The user of this token is disabled or does not exist any more.")
    if user.token_epoch != claims.epoch or accounts.is_revoked(claims.jti):
        raise NotAuthenticated("The token has been revoked. Log in again with POST /login.")
    return user


class Identifier:
    """Turns headers into principals. One for each process; safe for threads and greenlets.

    `clock` gives Unix seconds and tells what has expired; `monotonic` measures how long a check is trusted, so that a
    clock that is set back does not lengthen it.
    """

    def __init__(
        self,
        accounts: Accounts,
        settings: GatewaySettings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._accounts = accounts
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        # Keyed by a hash under a key of this process alone: a dump of the memory does not show the credentials.
        self._hash_key = secrets.token_bytes(32)
        self._trusted: dict[bytes, tuple[Principal, float]] = {}
        self._forgotten = 0
        self._lock = Lock()

    def identify(self, authorization: str | None) -> Principal:
        """Whose request it is. Needs an application context when the credential is a JWT.

        Raises:
            TokenExpired: the key or token was good once.
            NotAuthenticated: no credential, or one that is malformed, unknown or revoked; the message says which.
        """
        credential = bearer(authorization)
        digest = blake2b(credential.encode(), key=self._hash_key, digest_size=16).digest()
        # The time is taken before the check, so that a slow database does not lengthen the trust.
        started = self._monotonic()
        principal, trusted_until = self._trusted.get(digest, (None, 0.0))
        if principal is not None and started < trusted_until:
            return principal
        generation = self._forgotten
        now = self._clock()
        principal, expires_at = self._check(credential, now)
        trust = self._settings.identity_ttl
        if expires_at is not None:
            trust = min(trust, expires_at - now)
        self._remember(digest, principal, started + trust, generation)
        return principal

    def forget(self) -> None:
        """Trusts nothing any more that was checked before: a revocation made in this process holds here at once."""
        with self._lock:
            self._forgotten += 1
            self._trusted.clear()

    def _check(self, credential: str, now: float) -> tuple[Principal, float | None]:
        """The principal, and the Unix second at which its credential expires."""
        if credential.startswith("fb-"):
            return self._check_key(credential, now)
        if credential.count(".") == 2:
            return self._check_token(credential, now)
        raise NotAuthenticated("The API key is not valid: keys begin with 'fb-'.")

    def _check_key(self, plain: str, now: float) -> tuple[Principal, float | None]:
        key = self._accounts.find_key(plain)
        if key is None:
            raise NotAuthenticated("The API key is not known.")
        if key.revoked_at is not None:
            raise NotAuthenticated("The API key has been revoked.")
        if key.expired(now):
            raise TokenExpired("The API key has expired.")
        principal = Principal(
            tenant=key.tenant.name,
            subject=f"key:{key.id}",
            scopes=key.scopes,
            requests_per_minute=key.requests_per_minute or self._settings.requests_per_minute,
            tokens_per_minute=key.tokens_per_minute or self._settings.tokens_per_minute,
            cache_salt=self._accounts.cache_salt(key.tenant),
        )
        return principal, key.expires_at

    def _check_token(self, token: str, now: float) -> tuple[Principal, float | None]:
        claims = read_token(token, "access", now=now)
        user = token_user(self._accounts, claims)
        principal = Principal(
            tenant=user.tenant.name,
            subject=f"user:{user.id}",
            scopes=user.scopes,
            requests_per_minute=self._settings.requests_per_minute,
            tokens_per_minute=self._settings.tokens_per_minute,
            cache_salt=self._accounts.cache_salt(user.tenant),
        )
        return principal, claims.expires_at

    def _remember(self, digest: bytes, principal: Principal, until: float, generation: int) -> None:
        with self._lock:
            if generation != self._forgotten:
                return  # what was read may be older than the revocation
            self._trusted.pop(digest, None)
            if len(self._trusted) >= MAX_TRUSTED:
                del self._trusted[next(iter(self._trusted))]
            self._trusted[digest] = (principal, until)
