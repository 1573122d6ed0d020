"""Which gateway processes are alive: each renews a key of its own, and a process without one is dead.

What a process left behind, its leases, is settled by the others (`gateway.ledger.reaper`).
"""

from __future__ import annotations

import logging
import secrets
import threading
from contextlib import suppress

from redis import Redis

from services.cache.connection import CacheDown, Connection

log = logging.getLogger("forebay.cache")

INTERVAL = 1.0
"""Seconds between two heartbeats."""
TTL_MS = 5000
"""After so long without one a process counts as dead: long enough for a busy core, short enough for a freed slot."""


PROCESSES = "forebay:processes"
"""Set of the ids of all processes that may have left something behind."""


def alive_key(process: str) -> str:
    """The key that is there while the process is."""
    return f"forebay:alive:{process}"


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


class Process:
    """This gateway process, to the others. Made once a worker, after the fork."""

    def __init__(self, connection: Connection) -> None:
        self.id = secrets.token_hex(8)
        """Goes into each lease of this process. Never given twice: a process that is started anew is another."""
        self._connection = connection
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Beats now, so that the first lease finds its process alive, and each second from now on."""
        self.beat()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the heartbeat and says so, so that what is left is settled at once and not only after `TTL_MS`."""
        self._stopped.set()
        with suppress(CacheDown):
            self._connection.reach(lambda redis: redis.delete(alive_key(self.id)))

    def beat(self) -> None:
        """One heartbeat; silently none while Redis is down. Says each time that there is this process, as Redis may
        have forgotten it meanwhile."""

        def beat(redis: Redis) -> None:
            with redis.pipeline(transaction=False) as pipeline:
                pipeline.set(alive_key(self.id), 1, px=TTL_MS)
                pipeline.sadd(PROCESSES, self.id)
                pipeline.execute()

        with suppress(CacheDown):
            self._connection.reach(beat)

    def others(self) -> tuple[set[str], set[str]]:
        """The other processes: those that are alive, and those that are dead and not forgotten yet.

        Raises:
            CacheDown: Redis is not reachable, so that nobody can tell.
        """
        names = self._connection.reach(lambda redis: redis.smembers(PROCESSES))
        asked = sorted({_text(name) for name in names} - {self.id})
        if not asked:
            return set(), set()
        beats = self._connection.reach(lambda redis: redis.mget([alive_key(one) for one in asked]))
        dead = {one for one, beat in zip(asked, beats, strict=True) if beat is None}
        return set(asked) - dead, dead

    def forget(self, process: str) -> None:
        """Says that nothing is left of a dead process.

        Raises:
            CacheDown: Redis is not reachable.
        """
        self._connection.reach(lambda redis: redis.srem(PROCESSES, process))

    def first(self, role: str) -> bool:
        """Whether this process has a role that one of all is to have, for the next few seconds.

        Raises:
            CacheDown: Redis is not reachable.
        """
        holder = self._connection.reach(
            lambda redis: redis.set(f"forebay:role:{role}", self.id, nx=True, get=True, px=TTL_MS)
        )
        return holder is None or holder == self.id.encode()

    def _beat_on(self) -> None:
        while not self._stopped.wait(INTERVAL):
            self.beat()
