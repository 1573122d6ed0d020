"""The public keys of an outside issuer (RFC 7517), fetched seldom and kept while the issuer is down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from gevent import Timeout, monkey
from jwt import PyJWK, PyJWKClient, PyJWTError

from services.common.errors import IssuerUnavailable, NotAuthenticated

log = logging.getLogger("forebay.identity")

KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
"""The key type of each family of algorithms: a token does not choose how a key is used that is of another."""
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
MAX_KEYS = 100
KEPT = 86_400.0
"""Seconds that keys are used at most after they were fetched: an issuer that is down for longer is no issuer."""
AFTER_FAILURE = 5.0
"""Seconds until a fetch that failed is tried again."""


class Jwks:
    """The keys of one issuer, by their `kid`.

    They are fetched anew after `lifespan` seconds, and for a `kid` that is not among them, but at most once in `pause`
    seconds, so that made-up tokens can't have the issuer flooded. One request fetches; those whose key is known go on
    with it meanwhile.
    """

    def __init__(
        self,
        issuer: str,
        *,
        uri: str | None = None,
        lifespan: float = 300.0,
        pause: float = 10.0,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._uri = uri
        self._lifespan = lifespan
        self._pause = pause
        self._timeout = timeout
        self._clock = clock
        self._lock = Lock()
        self._keys: dict[str | None, Mapping[str, Any]] = {}
        self._parsed: dict[tuple[str | None, str], PyJWK] = {}
        self._fetched_at = float("-inf")
        self._next_fetch = float("-inf")
        self._failed = False

    def key(self, kid: str | None, algorithm: str) -> PyJWK:
        """The key of that id, for that algorithm; without an id the only key, where there is only one.

        Raises:
            NotAuthenticated: the issuer has no such key.
            IssuerUnavailable: the issuer can't be asked whether it has.
        """
        now = self._clock()
        known = now - self._fetched_at < KEPT and self._find(kid) is not None
        if (not known or now - self._fetched_at >= self._lifespan) and now >= self._next_fetch:
            self._refresh(wait=not known)
        found = self._find(kid) if self._clock() - self._fetched_at < KEPT else None
        if found is None:
            if self._failed:
                raise IssuerUnavailable(retry_after=max(0.0, self._next_fetch - self._clock()))
            raise NotAuthenticated("The token is signed with a key that its issuer does not have.")
        return self._parse(kid, found, algorithm)

    def _find(self, kid: str | None) -> Mapping[str, Any] | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    def _parse(self, kid: str | None, data: Mapping[str, Any], algorithm: str) -> PyJWK:
        fits = data.get("kty") == KINDS.get(algorithm[:2]) and data.get("alg", algorithm) == algorithm
        if algorithm not in ALGORITHMS or not fits:
            raise NotAuthenticated("The token is signed with an algorithm that its key is not for.")
        parsed = self._parsed.get((kid, algorithm))
        if parsed is None:
            try:
                parsed = PyJWK(dict(data), algorithm)
            except PyJWTError:
                raise NotAuthenticated("The key of the token's issuer can't be read.") from None
            self._parsed[kid, algorithm] = parsed
        return parsed

    def _refresh(self, *, wait: bool) -> None:
        if not self._lock.acquire(blocking=wait):
            return  # another request is at it, and this one has a key
        try:
            if self._clock() < self._next_fetch:
                return  # another request was at it
            try:
                self._keys, self._parsed = self._fetch(), {}
            except (PyJWTError, OSError, ValueError, Timeout) as error:
                if not self._failed:
                    log.error("the keys of the token issuer can't be fetched", extra={"error": str(error)})
                self._failed = True
                self._next_fetch = self._clock() + min(self._pause, AFTER_FAILURE)
                return
            self._failed = False
            self._fetched_at = self._clock()
            self._next_fetch = self._fetched_at + self._pause
        finally:
            self._lock.release()

    def _fetch(self) -> dict[str | None, Mapping[str, Any]]:
        # The client's own time-out is one of each read; this one is of the whole, under gevent.
        with Timeout(self._timeout if monkey.is_module_patched("socket") else None):
            document = _document(self._uri or self._discover(), self._timeout)
        keys = document.get("keys")
        if not isinstance(keys, list):
            raise ValueError("a key set must have a list of keys")
        return {
            key.get("kid"): key
            for key in keys[:MAX_KEYS]
            if isinstance(key, dict) and key.get("kty") in KINDS.values() and key.get("use", "sig") == "sig"
        }

    def _discover(self) -> str:
        """Where the keys are, by OpenID Connect Discovery 1.0, section 4."""
        document = _document(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration", self._timeout)
        if document.get("issuer") != self._issuer:
            raise ValueError("the discovery document is of another issuer")
        uri = document.get("jwks_uri")
        if not isinstance(uri, str) or urlsplit(uri).scheme not in ("https", urlsplit(self._issuer).scheme):
            raise ValueError("the discovery document names no keys, or names them by plain HTTP")
        return uri


def _document(url: str, timeout: float) -> dict[str, Any]:
    found: dict[str, Any] = PyJWKClient(url, cache_jwk_set=False, timeout=timeout).fetch_data()
    return found
