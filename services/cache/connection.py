"""The connection to Redis, which may be gone at any time without anything hanging on it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hiredis import pack_command
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
)
from redis.retry import Retry

log = logging.getLogger("forebay.cache")
Result = TypeVar("Result")


MAX_IDLE = 64
"""Connections for scripts that a process keeps open while none is under way."""


class CacheDown(Exception):
    """Redis did not answer, or takes no more writes; the caller goes on without it."""


@dataclass(frozen=True)
class Script:
    """A Lua script, and the hash that the server knows it by."""

    text: str
    sha: str


class Connection:
    """Redis behind a short time-out and a pause after a failure.

    While it is down, a call fails at once instead of waiting for its time-out, and one call every `pause` seconds tries
    again. Up and down are logged once each.
    """

    def __init__(
        self, url: str, *, timeout: float = 0.5, pause: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        # One retry without a pause: it replaces a pooled connection that a restarted server no longer knows.
        self._redis = Redis.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 1)
        )
        self._idle: list[Any] = []
        """Connections of redis-py, whose methods have no types."""
        self._pause = pause
        self._clock = clock
        self._retry_at: float | None = None

    @property
    def down(self) -> bool:
        """Whether the last call failed."""
        return self._retry_at is not None

    def script(self, name: str) -> Script:
        """The Lua script `lua/<name>.lua`, to be run with `run`."""
        text = (Path(__file__).parent / "lua" / f"{name}.lua").read_text()
        return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | int | bytes]) -> Any:
        """The script's result.

        Each request runs two of them, so they go over connections of redis-py, but past its pool and its way of
        sending a command, which take three times as long as the exchange itself.

        Raises:
            CacheDown: Redis is not reachable.
        """
        return self._guard(lambda: self._exchange(script, len(keys), *keys, *args))

    def reach(self, call: Callable[[Redis], Result]) -> Result:
        """What `call` makes of the client: a command, or a pipeline as one round trip.

        Raises:
            CacheDown: Redis is not reachable.
        """
        return self._guard(lambda: call(self._redis))

    def store(self, key: str, value: bytes, ttl: int) -> None:
        """Keeps `value` for `ttl` seconds.

        Raises:
            CacheDown: Redis is not reachable.
        """
        self._guard(lambda: self._redis.set(key, value, ex=ttl))

    def ping(self) -> None:
        """Looks whether Redis answers.

        Raises:
            CacheDown: it does not.
        """
        self._guard(self._redis.ping)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().disconnect()
        self._redis.close()

    def _exchange(self, script: Script, *args: str | int | bytes) -> Any:
        command: Any = ("EVALSHA", script.sha, *args)
        link: Any
        try:
            link, fresh = self._idle.pop(), False
        except IndexError:
            link, fresh = self._redis.connection_pool.make_connection(), True
        # Each command below closes the link itself where it fails, so that nobody reads a late answer to another's.
        try:
            link.send_packed_command([pack_command(command)], check_health=False)
            return link.read_response()
        except NoScriptError:  # the server is new
            link.send_command("SCRIPT", "LOAD", script.text)
            link.read_response()
            link.send_command(*command)
            return link.read_response()
        except ConnectionError:
            if fresh:
                raise
            while self._idle:  # a restarted server knows none of them
                self._idle.pop().disconnect()
            link.send_command("EVAL", script.text, *args)
            return link.read_response()
        finally:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(link)
            else:
                link.disconnect()

    def _guard(self, call: Callable[[], Result]) -> Result:
        now = self._clock()
        if self._retry_at is not None:
            if now < self._retry_at:
                raise CacheDown
            self._retry_at = now + self._pause  # this call tries; the others keep failing at once meanwhile
        try:
            result = call()
        except (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError) as error:
            if not self.down:
                log.error("redis is down: response cache off, quotas held per process", extra={"error": str(error)})
            self._retry_at = self._clock() + self._pause
            raise CacheDown from error
        if self.down:
            log.info("redis is back")
            self._retry_at = None
        return result
