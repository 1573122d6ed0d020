"""API keys and passwords: how they are made, what is kept of them, how they are checked.

A key has 256 random bits, so a keyed hash of it (HMAC-SHA256) is as safe as a slow one and costs microseconds. A
password has few, so it gets argon2id.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from gevent import get_hub, monkey

KEY = re.compile(r"fb-(?P<prefix>[a-z2-7]{8})-[A-Za-z0-9_-]{43}", re.ASCII)
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"

Result = TypeVar("Result")


def mint_key() -> str:
    """A new plain API key: `fb-`, a public prefix of 40 bits to find it by, 32 secret bytes in URL-safe base64."""
    prefix = "".join(secrets.choice(_BASE32) for _ in range(8))
    return f"fb-{prefix}-{secrets.token_urlsafe(32)}"


def key_prefix(plain: str) -> str | None:
    """The public prefix of a key, None of what isn't a key at all."""
    match = KEY.fullmatch(plain)
    return match["prefix"] if match else None


def keyed_hash(secret: str, purpose: str, text: str) -> str:
    """HMAC-SHA256 in hex. The purpose goes in, so that the same secret serves several uses that can't be mixed up."""
    return hmac.digest(secret.encode(), f"{purpose}:{text}".encode(), "sha256").hex()


def password_hasher() -> PasswordHasher:
    """argon2id with 19 MiB, two passes and one lane, of OWASP's Password Storage Cheat Sheet.

    The library's own 64 MiB would let ten log-ins at a time take 640 MiB of a gateway.
    """
    return PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


def matches(hasher: PasswordHasher, password_hash: str, password: str) -> bool:
    """Whether the password is the one that was hashed."""
    try:
        return hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


def off_loop(function: Callable[..., Result], *args: object) -> Result:
    """The function's result, computed in gevent's thread pool where gevent runs the process.

    argon2 takes tens of milliseconds of pure computation, in which no stream of this worker could move.
    """
    if not monkey.is_module_patched("socket"):
        return function(*args)
    result: Result = get_hub().threadpool.apply(function, args)
    return result
