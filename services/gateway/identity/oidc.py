"""Tokens of an outside issuer (OpenID Connect, RFC 9068): whose they are and what they may, by the claims in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from services.common.errors import Forbidden, NotAuthenticated, TokenExpired
from services.common.settings import IdentitySettings
from services.gateway.accounts import PLATFORM
from services.gateway.identity.jwks import ALGORITHMS, Jwks

LEEWAY = 60
"""Seconds that the issuer's clock may be ahead of ours. A token's end is not stretched by it."""
EVERYBODY = "*"
"""As a name in the settings' maps: whoever has a token of the issuer."""


@dataclass(frozen=True)
class Outsider:
    """Whom a token is of. `identity` is the issuer and the issuer's name for the person; `expires_at` is in Unix
    seconds; `tenant` is one of our names, which may not exist."""

    identity: str
    tenant: str
    scopes: frozenset[str]
    expires_at: float


class Oidc:
    """Reads the tokens of the one issuer that the settings name."""

    def __init__(self, settings: IdentitySettings, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        assert settings.oidc_issuer is not None
        self._settings = settings
        self._issuer = settings.oidc_issuer
        self._keys = Jwks(
            settings.oidc_issuer,
            uri=settings.oidc_jwks_uri,
            lifespan=settings.oidc_keys_ttl,
            pause=settings.oidc_refetch_interval,
            clock=monotonic,
        )

    def read(self, token: str, *, now: float) -> Outsider:
        """Whom the token is of, once signature, algorithm, issuer, audience and times are right.

        Raises:
            TokenExpired: its time is over.
            NotAuthenticated: it is not a token of the issuer for us.
            Forbidden: it is, and names no tenant that has a place here.
            IssuerUnavailable: its key is not known and the issuer can't be reached.
        """
        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid")
            key = self._keys.key(kid if isinstance(kid, str) else None, str(header.get("alg")))
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                issuer=self._issuer,
                audience=self._settings.oidc_audience,
                leeway=LEEWAY,
                # The expiry is looked at below, by the clock that was handed in.
                options={"require": ["exp", "iss", "aud", "sub"], "verify_exp": False},
            )
            expires_at = float(claims["exp"])
        except (jwt.PyJWTError, TypeError, ValueError, RecursionError):
            raise NotAuthenticated("The token is not one of the issuer that is trusted here.") from None
        if not expires_at > now:
            raise TokenExpired("The token has expired.")
        return Outsider(f"{self._issuer} {claims['sub']}", self._tenant(claims), self._scopes(claims), expires_at)

    def _tenant(self, claims: Mapping[str, Any]) -> str:
        values = _texts(_claim(claims, self._settings.oidc_tenant_claim))
        places = self._settings.oidc_tenants
        if places:
            named = next((places[value] for value in (*values, EVERYBODY) if value in places), None)
        else:
            # What an issuer happens to call itself must not make its people our operators.
            named = next((value for value in values if value != PLATFORM), None)
        if named is None:
            raise Forbidden(f"The token's claim '{self._settings.oidc_tenant_claim}' names no tenant of this service.")
        return named

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[str]:
        groups = {EVERYBODY, *_texts(_claim(claims, self._settings.oidc_scope_claim))}
        return frozenset(scope for group in groups for scope in self._settings.oidc_scopes.get(group, ()))


def is_foreign(token: str) -> bool:
    """Whether the token says that it is signed with a key pair, which ours never are; anything may be behind it."""
    try:
        return jwt.get_unverified_header(token).get("alg") in ALGORITHMS
    except (jwt.PyJWTError, TypeError, ValueError, RecursionError):
        return False


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of that name, or the one within others that the name leads to, as `realm_access.roles`."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _texts(value: Any) -> list[str]:
    """A claim's values: a list of words, or one text of them, as RFC 6749 writes a scope."""
    if isinstance(value, str):
        return value.split()
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
