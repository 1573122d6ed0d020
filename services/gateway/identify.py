"""Step 1 of a request: whose it is. An `Authorization` header becomes a `Principal`, or the request ends with 401.

A credential is an API key (`fb-…`), an access token of `POST /login`, or a token of the outside issuer where there is
one. One that was checked is trusted for `identity_ttl` seconds without a look into the database, which is therefore
also the longest that a revocation takes; while the database can't be reached, for `identity_grace` seconds.
"""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock

from services.cache.windows import LIMITS, Limits
from services.common.errors import (
    AccountsUnavailable,
    ApiError,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    TokenExpired,
)
from services.common.settings import GatewaySettings
from services.gateway.accounts import Accounts, Tenant
from services.gateway.accounts.tables import Rights
from services.gateway.identity.oidc import Oidc, is_foreign
from services.gateway.identity.tokens import read_token, token_user

MAX_TRUSTED = 10_000
"""Credentials that a process remembers, about 5 MB of them."""

# The characters of a token after RFC 6750 section 2.1. Longer than a header that gunicorn takes is refused unread.
_BEARER = re.compile(r"\s*bearer\s+([A-Za-z0-9._~+/=-]{1,8192})\s*", re.ASCII | re.IGNORECASE)


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


_Trust = tuple[Principal, float, float]
"""Whose a credential is, until when without a look into the database, until when while there is no database."""
_NOBODY = (None, 0.0, 0.0)


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
        self._trusted: dict[bytes, _Trust] = {}
        self._oidc = Oidc(settings, monotonic=monotonic) if settings.oidc_issuer else None
        self._forgotten = 0
        self._lock = Lock()

    def identify(self, authorization: str | None) -> Principal:
        """Whose request it is. Needs an application context when the credential is a JWT.

        Raises:
            TokenExpired: the key or token was good once.
            NotAuthenticated: no credential, or one that is malformed, unknown or revoked; the message says which.
            Forbidden: the credential is good, and its tenant is disabled or not there.
            AccountsUnavailable: the database can't be reached, and the credential was not checked lately.
        """
        credential = bearer(authorization)
        digest = self._digest(credential)
        # The time is taken before the check, so that a slow database does not lengthen the trust.
        started = self._monotonic()
        known, fresh_until, good_until = self._trusted.get(digest, _NOBODY)
        if known is not None and started < fresh_until:
            return known
        generation = self._forgotten
        now = self._clock()
        try:
            principal, expires_at = self._check(credential, now)
        except AccountsUnavailable:
            if known is not None and started < good_until:
                return known
            raise
        except ApiError:
            # Or else it would be good again when the database goes.
            self._trusted.pop(digest, None)
            raise
        left = math.inf if expires_at is None else expires_at - now
        fresh, good = self._settings.identity_ttl, self._settings.identity_grace
        self._remember(digest, (principal, started + min(fresh, left), started + min(good, left)), generation)
        return principal

    def trusted(self, authorization: str | None) -> Principal | None:
        """Whose request it is, where its credential was checked lately; None where `identify` must tell."""
        match = _BEARER.fullmatch(authorization or "")
        if match is None:
            return None
        known, fresh_until, _ = self._trusted.get(self._digest(match[1]), _NOBODY)
        return known if self._monotonic() < fresh_until else None

    def _digest(self, credential: str) -> bytes:
        return blake2b(credential.encode(), key=self._hash_key, digest_size=16).digest()

    def forget(self, subject: str | None = None) -> None:
        """Trusts nothing any more that was checked before, or nothing of one subject: a revocation made in this process
        holds here at once."""
        with self._lock:
            self._forgotten += 1
            if subject is None:
                self._trusted.clear()
                return
            kept = {digest: known for digest, known in self._trusted.items() if known[0].subject != subject}
            self._trusted = kept

    def _check(self, credential: str, now: float) -> tuple[Principal, float | None]:
        """The principal, and the Unix second at which its credential expires."""
        if credential.startswith("fb-"):
            return self._check_key(credential, now)
        if credential.count(".") == 2:
            return self._check_token(credential, now)
        raise NotAuthenticated("The API key is not valid: keys begin with 'fb-'.")

    def _check_key(self, plain: str, now: float) -> tuple[Principal, float | None]:
        key = self._accounts.keys.find(plain)
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
        if self._oidc is not None and is_foreign(token):
            return self._check_outsider(self._oidc, token, now)
        claims = read_token(token, "access", now=now)
        user = token_user(self._accounts, claims)
        return self._principal(user.tenant, f"user:{user.id}", user.scopes, user), claims.expires_at

    def _check_outsider(self, oidc: Oidc, token: str, now: float) -> tuple[Principal, float | None]:
        outsider = oidc.read(token, now=now)
        subject = f"oidc:{self._accounts.keyed_hash('oidc', outsider.identity)[:32]}"
        return self._principal(self._place(outsider.tenant), subject, outsider.scopes, None), outsider.expires_at

    def _place(self, name: str) -> Tenant:
        """The tenant of that name, made where it is missing and the settings say so.

        Raises:
            Forbidden: there is none.
        """
        try:
            return self._accounts.tenants.get(name)
        except NotFound:
            if not self._settings.oidc_create_tenants:
                raise Forbidden("The tenant that your token names does not exist here.") from None
        try:
            return self._accounts.tenants.create(name)
        except Conflict:
            return self._accounts.tenants.get(name)  # another request was faster
        except InvalidRequest:
            raise Forbidden("What your token names can't be the name of a tenant here.") from None

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

    def _remember(self, digest: bytes, trust: _Trust, generation: int) -> None:
        with self._lock:
            if generation != self._forgotten:
                return  # what was read may be older than the revocation
            self._trusted.pop(digest, None)
            if len(self._trusted) >= MAX_TRUSTED:
                del self._trusted[next(iter(self._trusted))]
            self._trusted[digest] = trust


def _both(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    """The models that are on both lists."""
    if one is None or other is None:
        return one if other is None else other
    return one & other


def _with_defaults(own: Limits, default: Limits) -> Limits:
    return Limits(*(getattr(default if getattr(own, name) is None else own, name) for name in LIMITS))
