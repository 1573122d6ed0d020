"""The response cache: the exact answer to the exact same request of the same tenant."""

from __future__ import annotations

import contextlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from services.cache.connection import CacheDown, Connection

IRRELEVANT = frozenset({"stream", "stream_options", "user", "metadata", "store", "cache_salt", "service_tier"})
"""Request fields that do not change the answer, so that they are no part of its key."""


def answer_key(salt: str, kind: str, body: Mapping[str, Any]) -> str:
    """The key of the answer to `body`. Keyed by the tenant's salt: another tenant cannot hit it nor guess it."""
    relevant = {name: value for name, value in body.items() if name not in IRRELEVANT and value is not None}
    canonical = json.dumps([kind, relevant], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hmac.digest(salt.encode(), canonical.encode(), "sha256")
    return f"forebay:answer:{digest.hex()}"


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

    def keeping(self, key: str, answer: bytes) -> tuple[str, bytes, int] | None:
        """How `Quotas.settle` is to keep an answer's body; None when it is too large."""
        return (key, answer, self._ttl) if self.enabled and len(answer) <= self._max_bytes else None

    def keep(self, key: str, answer: bytes) -> None:
        """Keeps an answer's body; silently not when it is too large or Redis is down."""
        if not self.enabled or len(answer) > self._max_bytes:
            return
        with contextlib.suppress(CacheDown):
            self._connection.store(key, answer, self._ttl)
