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

from services.cache.windows import LIMITS, Limits
from services.common.errors import Forbidden, NotAuthenticated, TokenExpired
from services.common.settings import GatewaySettings
from services.gateway.accounts import Accounts, Tenant, User
from services.gateway.accounts.tables import Rights

MAX_TRUSTED = 10_000
"""Credentials that a process remembers, about 5 MB of them."""

# The characters of a token after RFC 6750 section 2.1. Longer than any credential of ours is refused unread.
_BEARER = re.compile(r"\s*bearer\s+([A-Za-z0-9._~+/=-]{1,4096})\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Principal:
    """Who makes the request, and what it may."""

    tenant: str
    """A slug, fit for a metric label."""
    tenant_id: str
    subject: str
    """What the quotas and the ledger count on: `key:<id>`, `user:<id>` or `oidc:<hash>`."""
    scopes: frozenset[str]
    models: frozenset[str] | None
    """The models that it may use, None for all."""
    limits: Limits
    """The subject's own."""
    tenant_limits: Limits
    """Those of all subjects of the tenant together."""
    cache_salt: str
    """Keys the tenant's entries in the response cache and in the pods' KV prefix cache."""
    weight: float = 1.0
    """The tenant's fair share of a pod beside others."""
    share_cache: bool = False
    """Whether the tenant shares cached answers with the others that do."""


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
        self._default_limits = Limits(
            settings.requests_per_minute,
            settings.tokens_per_minute,
            settings.concurrent_requests,
            settings.tokens_per_day,
            settings.tokens_per_month,
            settings.micros_per_day,
            settings.micros_per_month,
        )
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
        if key.disabled:
            raise NotAuthenticated("The API key is disabled.")
        if key.expired(now):
            raise TokenExpired("The API key has expired.")
        return self._principal(key.tenant, f"key:{key.id}", key.scopes, key), key.expires_at

    def _check_token(self, token: str, now: float) -> tuple[Principal, float | None]:
        claims = read_token(token, "access", now=now)
        user = token_user(self._accounts, claims)
        return self._principal(user.tenant, f"user:{user.id}", user.scopes, user), claims.expires_at

    def _principal(self, tenant: Tenant, subject: str, scopes: frozenset[str], rights: Rights | None) -> Principal:
        """The principal of a credential that holds. `rights` are its own, where it has some.

        Raises:
            Forbidden: its tenant is disabled.
        """
        if tenant.disabled:
            raise Forbidden(f"The tenant '{tenant.name}' is disabled.")
        return Principal(
            tenant=tenant.name,
            tenant_id=tenant.id,
            subject=subject,
            scopes=scopes,
            models=_both(tenant.allowed_models, rights.allowed_models if rights is not None else None),
            limits=_with_defaults(rights.limits, self._default_limits) if rights is not None else self._default_limits,
            tenant_limits=tenant.limits,
            cache_salt=self._accounts.cache_salt(tenant),
            weight=tenant.weight,
            share_cache=tenant.share_cache,
        )

    def _remember(self, digest: bytes, principal: Principal, until: float, generation: int) -> None:
        with self._lock:
            if generation != self._forgotten:
                return  # what was read may be older than the revocation
            self._trusted.pop(digest, None)
            if len(self._trusted) >= MAX_TRUSTED:
                del self._trusted[next(iter(self._trusted))]
            self._trusted[digest] = (principal, until)


def _both(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    """The models that are on both lists."""
    if one is None or other is None:
        return one if other is None else other
    return one & other


def _with_defaults(own: Limits, default: Limits) -> Limits:
    return Limits(*(getattr(default if getattr(own, name) is None else own, name) for name in LIMITS))
