"""The response cache: the exact answer to the exact same request of the same tenant."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from services.cache.connection import CacheDown, Connection
from services.cache.kept import Kept

IRRELEVANT = frozenset({"stream", "stream_options", "user", "metadata", "store", "cache_salt", "service_tier"})
"""Request fields that do not change the answer, so that they are no part of its key."""


ANSWER = "forebay:kept:"
"""Begins the key of an answer."""


def answer_key(salt: str, kind: str, body: Mapping[str, Any]) -> str:
    """The key of the answer to `body`. Keyed by the tenant's salt: another tenant cannot hit it nor guess it."""
    return salted(salt, digest_of(kind, body))


def digest_of(kind: str, body: Mapping[str, Any]) -> bytes:
    """What is the same for requests that have the same answer, whosever they are."""
    relevant = {name: value for name, value in body.items() if name not in IRRELEVANT and value is not None}
    canonical = json.dumps([kind, relevant], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).digest()


def salted(salt: str, digest: bytes) -> str:
    """The key of a tenant's answer to what has this digest."""
    return f"{ANSWER}{hmac.digest(salt.encode(), digest, 'sha256').hex()}"


def flight_key(answer: str) -> str:
    """Where it is written who computes the answer under the key `answer` at the moment."""
    return f"forebay:flight:{answer.rpartition(':')[2]}"


class Responses:
    """Keeps answers for `ttl` seconds (0: keeps none). Looked up by `Quotas.reserve`, in the same exchange.

    `max_bytes` bounds one answer; all together are bounded by Redis' own `maxmemory`, which evicts the least used.
    """

    def __init__(self, connection: Connection, *, ttl: int, max_bytes: int, shared_salt: str = "") -> None:
        self._connection = connection
        self._ttl = ttl
        self._max_bytes = max_bytes
        self._shared_salt = shared_salt

    def salt(self, own: str, *, share: bool) -> str:
        """What the keys of a tenant's answers are salted with: its own salt, or the one of all who share."""
        return self._shared_salt if share and self._shared_salt else own

    @property
    def enabled(self) -> bool:
        return self._ttl > 0

    def keeping(self, key: str, answer: Kept) -> tuple[str, bytes, int] | None:
        """How `Quotas.settle` is to keep an answer; None when its body is too large."""
        return (key, answer.value(), self._ttl) if self.enabled and len(answer.body) <= self._max_bytes else None

    def keep(self, key: str, answer: Kept) -> None:
        """Keeps an answer; silently not when its body is too large or Redis is down."""
        kept = self.keeping(key, answer)
        if kept is not None:
            with contextlib.suppress(CacheDown):
                self._connection.store(*kept)
