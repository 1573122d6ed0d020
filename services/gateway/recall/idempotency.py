"""`Idempotency-Key` on generation (after the IETF draft httpapi-idempotency-key-header): sent again, a request is not
generated again.

The first request with a key writes its name down, with a digest of its body, and records its answer on its tape. Who
comes with the key later is given that tape. A run that failed is no answer: the next request with the key makes it. One
that was cut goes on where it was cut, if its pod told the tokens, else it is made anew.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from services.cache.connection import CacheDown
from services.cache.tape import tape_key
from services.common.errors import IdempotencyMismatch, InvalidRequest
from services.gateway.call import Call, Reply, Spent
from services.gateway.identify import Principal
from services.gateway.parts import Gateway
from services.gateway.recall.playback import Playback
from services.gateway.recall.rejoin import come_back, digest_of, recording_of

HEADER = "Idempotency-Key"
_KEY = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?", re.ASCII)


def repeat(gateway: Gateway, principal: Principal, call: Call, spent: Spent) -> Reply | None:
    """The answer of the first request with this key of the same subject; None where this one is to get it.

    While Redis is down the header does nothing.

    Raises:
        InvalidRequest: the key has not the form of one.
        IdempotencyMismatch: it named another request before.
    """
    key = call.idempotency_key or ""
    if _KEY.fullmatch(key) is None:
        raise InvalidRequest(f"{HEADER} must be 1 to 255 visible ASCII characters.", param=HEADER)
    ttl = gateway.settings.idempotency_ttl
    record = _record_key(principal, key)
    digest = digest_of(call)
    value = f"{digest} {call.id} {gateway.tapes.process}"
    try:
        first = gateway.connection.reach(lambda redis: redis.set(record, value, nx=True, get=True, ex=ttl))
        if isinstance(first, bytes):
            before, name, process = first.decode().split()
            if before != digest:
                raise IdempotencyMismatch(f"This {HEADER} was used with another request body.", param=HEADER)
            playback = Playback(gateway, call, tape_key(principal.cache_salt, name), (name, process))
            if not (playback.cut and not _continues(call, playback)):
                recording = recording_of(gateway, principal, call, spent, name=name, ttl=ttl)
                reply = come_back(gateway, principal, call, spent, recording, playback=playback, number=0)
                if reply is not None:
                    reply.headers["Idempotency-Replayed"] = "true"
                return reply
            playback.close()
            gateway.connection.reach(lambda redis: redis.set(record, value, ex=ttl))
    except CacheDown:
        return None
    spent.recording = recording_of(gateway, principal, call, spent, name=call.id, ttl=ttl)
    spent.recording.write()
    return None


def _continues(call: Call, playback: Playback) -> bool:
    """Whether what was cut can be gone on with: nothing is there yet, or all is known of what is."""
    return playback.empty or (call.request.choices == 1 and playback.noted)


def _record_key(principal: Principal, key: str) -> str:
    named = f"{principal.subject}\n{key}".encode()
    return f"forebay:idempotency:{hmac.new(principal.cache_salt.encode(), named, hashlib.sha256).hexdigest()}"
