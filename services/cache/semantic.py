"""Questions of a tenant that were answered, by their meaning: vectors, each with the key of its answer.

One list in Redis for each tenant, the newest first, cut at a bound. A look-up reads it whole: it is meant for hundreds
of questions that many ask, not for thousands, for which there are vector databases.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from array import array
from collections.abc import Sequence
from operator import mul

from services.cache.connection import Connection
from services.cache.kept import Kept
from services.cache.responses import ANSWER

_SCOPE = 16
_KEY = 64
"""Bytes at the head of an entry: a digest of what must be the same, and the name of the answer."""


class Meanings:
    """At most `most` vectors for each tenant, kept for `ttl` seconds after the last was added."""

    def __init__(self, connection: Connection, *, most: int, ttl: int) -> None:
        self._connection = connection
        self._most = most
        self._ttl = ttl

    def nearest(self, salt: str, scope: str, vector: Sequence[float]) -> tuple[float, bytes] | None:
        """The answer of the question of the same `scope` that is nearest, and how near (cosine, 1 is the same); None
        where there is none.

        Raises:
            CacheDown: Redis is not reachable.
        """
        head, asked = _digest(salt, scope), _unit(vector)
        rows = self._connection.reach(lambda redis: redis.lrange(_list(salt), 0, -1))
        best, found = -1.0, ""
        for row in rows:
            if not isinstance(row, bytes) or not row.startswith(head):
                continue
            known = array("f")
            known.frombytes(row[_SCOPE + _KEY :])
            if len(known) == len(asked) and (similarity := sum(map(mul, asked, known))) > best:
                best, found = similarity, row[_SCOPE : _SCOPE + _KEY].decode()
        if not found:
            return None
        answer = self._connection.reach(lambda redis: redis.get(f"{ANSWER}{found}"))
        return (min(best, 1.0), Kept.of(answer).body) if isinstance(answer, bytes) else None

    def add(self, salt: str, scope: str, vector: Sequence[float], answer_key: str) -> None:
        """Remembers that the answer under `answer_key` is that to a question of this meaning.

        Raises:
            CacheDown: Redis is not reachable.
        """
        name = answer_key.rpartition(":")[2].encode()
        assert len(name) == _KEY
        row, key = _digest(salt, scope) + name + _unit(vector).tobytes(), _list(salt)

        def exchange(redis: object) -> None:
            pipe = redis.pipeline(transaction=False)  # type: ignore[attr-defined]
            pipe.lpush(key, row)
            pipe.ltrim(key, 0, self._most - 1)
            pipe.expire(key, self._ttl)
            pipe.execute()

        self._connection.reach(exchange)


def _list(salt: str) -> str:
    return f"forebay:meanings:{hmac.new(salt.encode(), b'meanings', hashlib.sha256).hexdigest()[:40]}"


def _digest(salt: str, scope: str) -> bytes:
    return hmac.new(salt.encode(), scope.encode(), hashlib.sha256).digest()[:_SCOPE]


def _unit(vector: Sequence[float]) -> array[float]:
    """The vector at length one, in 32-bit floats; all zeros stay so, and are near to nothing."""
    length = math.hypot(*vector) or 1.0
    return array("f", [number / length for number in vector])
