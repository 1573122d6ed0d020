"""The tapes of calls in Redis: capped streams, for who lost a call in mid-stream or waits for the same answer.

Writing costs a call an append to a list: one thread of each process takes what is new on all its tapes, ten times a
second, and sends it in one exchange. Reading is one blocking exchange for all tapes that a process follows, so that
followers, however many, take two connections to Redis a process: that one, and the subscription to requests for a tape.

A tape that loses its writer can be taken over by whoever has read it to its end (`Tapes.take`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from services.cache.connection import CacheDown, Connection
from services.cache.kept import Kept
from services.cache.processes import alive_key
from services.cache.tape import Begin, End, Entry, Writer, read_entry

log = logging.getLogger("forebay.cache")

FLUSH_INTERVAL = 0.1
"""Seconds between two writes of what is new."""
BLOCK_MS = 100
"""Longest wait of one read; must stay well below the connection's time-out."""
MAX_ENTRIES = 4096
"""Of one tape, about: nearly seven minutes of batches. Who wants what was cut off at its beginning gets nothing."""


class Follower:
    """What comes on a tape after the entry `last`. `close` must be called."""

    def __init__(self, last: bytes, close: Callable[[Follower], None]) -> None:
        self.last = last
        self.lost = False
        """Redis is down, so that nothing will come."""
        self._new: deque[tuple[bytes, Entry]] = deque()
        self._news = threading.Event()
        self._close = close

    def wait(self, timeout: float) -> list[Entry]:
        """What came, within `timeout` seconds; often nothing, as others make it look too."""
        if not self._new:
            self._news.wait(timeout)
        self._news.clear()
        found: list[Entry] = []
        while self._new:
            identity, entry = self._new.popleft()
            if _order(identity) > _order(self.last):
                self.last = identity
                found.append(entry)
        return found

    def wake(self) -> None:
        """Ends a wait. Does not wait itself: it may be called from an event loop."""
        self._news.set()

    def put(self, entries: list[tuple[bytes, Entry]]) -> None:
        self._new.extend(entries)
        self._news.set()

    def close(self) -> None:
        self._close(self)


class Tapes:
    """All tapes that a process writes and follows. `wanted(call)` is called, from another thread or greenlet, when
    somebody asks for the tape of a call that this process works on."""

    def __init__(self, connection: Connection, process: str) -> None:
        self.process = process
        self.wanted: Callable[[str], None] = lambda _call: None
        self._connection = connection
        self._take = connection.script("take")
        self._lock = threading.Lock()
        self._writers: dict[int, Writer] = {}
        self._writing = threading.Event()
        self._hurry = threading.Event()
        self._followers: dict[str, list[Follower]] = {}
        self._places: dict[str, bytes] = {}
        self._following = threading.Event()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Writes, reads and listens from now on."""
        work = {"tape-write": self._write_on, "tape-read": self._read_on, "tape-listen": self._listen}
        self._threads = [threading.Thread(target=done, name=name, daemon=True) for name, done in work.items()]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends what `start` began; what is new is written still."""
        self._stopped.set()
        for event in (self._writing, self._hurry, self._following):
            event.set()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def write(self, writer: Writer) -> None:
        """Writes what the writer drains, until its `end`."""
        self._writers[id(writer)] = writer
        self._writing.set()

    def end(self, writer: Writer, how: End) -> None:
        """The tape's last entry, written at once with what is new."""
        writer.ended = how
        self._writing.set()
        self._hurry.set()

    def read(self, key: str, after: bytes = b"") -> list[tuple[bytes, Entry]]:
        """What stands on a tape, after the entry of this id.

        Raises:
            CacheDown: Redis is not reachable.
        """
        start = b"(" + after if after else b"-"
        rows: Any = self._connection.reach(lambda redis: redis.xrange(key, min=start))
        return [(identity, read_entry(fields)) for identity, fields in rows]

    def follow(self, key: str, last: bytes) -> Follower:
        """Follows a tape from the entry `last` on (b"" for its beginning)."""
        last = last or b"0-0"
        follower = Follower(last, lambda one: self._leave(key, one))
        with self._lock:
            self._followers.setdefault(key, []).append(follower)
            self._places[key] = min(self._places.get(key, last), last, key=_order)
        self._following.set()
        return follower

    def take(self, key: str, last: bytes, begin: Begin, ttl: float) -> bool:
        """Makes this process the writer, unless somebody has written after the entry `last` (b"" for none).

        Raises:
            CacheDown: Redis is not reachable.
        """
        fields = [part for pair in begin.fields().items() for part in pair]
        arguments: list[Any] = [b"" if last == b"0-0" else last, int(ttl * 1000), MAX_ENTRIES, *fields]
        return self._connection.run(self._take, [key], arguments) is not None

    def ask(self, process: str, call: str, answer: str) -> tuple[bool, bool, bytes | None]:
        """Asks `process` to put `call` on tape. Returns whether the process is there to do it, whether it still works
        on the call, and the answer, where it lies under the key `answer` by now.

        Raises:
            CacheDown: Redis is not reachable.
        """

        def exchange(redis: Any) -> list[Any]:
            pipe = redis.pipeline(transaction=False)
            # First: a call that has ended leaves its answer before it ceases to be worked on.
            pipe.hexists(f"forebay:leases:{process}", call)
            pipe.publish(_channel(process), call)
            pipe.exists(alive_key(process))
            pipe.get(answer)
            return list(pipe.execute())

        leased, listeners, alive, found = self._connection.reach(exchange)
        return bool(listeners and alive), bool(leased), None if found is None else Kept.of(found).body

    def _leave(self, key: str, follower: Follower) -> None:
        with self._lock:
            rest = [one for one in self._followers.get(key, ()) if one is not follower]
            if rest:
                self._followers[key] = rest
            else:
                self._followers.pop(key, None)
                self._places.pop(key, None)

    def _write_on(self) -> None:
        while not self._stopped.is_set():
            self._writing.wait()
            due = time.monotonic() + FLUSH_INTERVAL
            while self._hurry.wait(max(0.0, due - time.monotonic())) and not self._stopped.is_set():
                self._hurry.clear()
                self.flush(ended=True)
            self.flush()
            if not self._writers:
                self._writing.clear()
                if self._writers:  # one that came meanwhile
                    self._writing.set()

    def flush(self, *, ended: bool = False) -> None:
        """Writes what is new on all tapes, or on those alone that have `ended`. What can't be written is lost, and its
        tape stops there: whoever reads it goes on by itself."""
        writers = [one for one in self._writers.values() if one.ended is not None or not ended]
        work = [(writer, entries) for writer in writers if (entries := writer.news())]
        for writer, _ in work:
            if writer.ended is not None:
                self._writers.pop(id(writer), None)
        if not work:
            return

        def exchange(redis: Any) -> list[Any]:
            pipe = redis.pipeline(transaction=False)
            for writer, entries in work:
                for fields in entries:
                    pipe.xadd(writer.key, fields, maxlen=MAX_ENTRIES, approximate=True)
                if writer.ended is not None or b"begin" in entries[0]:
                    pipe.pexpire(writer.key, writer.ttl_ms)
            return list(pipe.execute(raise_on_error=False))

        try:
            replies = self._connection.reach(exchange)
        except CacheDown:
            replies = []
        if not replies or any(isinstance(reply, RedisError) for reply in replies):
            log.warning("tapes could not be written", extra={"tapes": len(work)})
            for writer, _ in work:
                writer.lost = True
                self._writers.pop(id(writer), None)

    def _read_on(self) -> None:
        while not self._stopped.is_set():
            self._following.wait(1)
            with self._lock:
                places: dict[Any, Any] = dict(self._places)
                if not places:
                    self._following.clear()
                    continue
            try:
                found = self._connection.reach(partial(_read_news, places))
            except CacheDown:
                self._lose_all()
                self._stopped.wait(FLUSH_INTERVAL)
                continue
            for name, rows in found:
                key = name.decode()
                self._hand_out(key, places[key], [(identity, read_entry(fields)) for identity, fields in rows])

    def _hand_out(self, key: str, place: bytes, entries: list[tuple[bytes, Entry]]) -> None:
        with self._lock:
            if self._places.get(key) != place:
                return  # one came meanwhile who is not so far yet: all is read again, from there
            self._places[key] = entries[-1][0]
            for follower in self._followers.get(key, ()):
                follower.put(entries)

    def _lose_all(self) -> None:
        with self._lock:
            for followers in self._followers.values():
                for follower in followers:
                    follower.lost = True
                    follower.wake()

    def _listen(self) -> None:
        while not self._stopped.is_set():
            with suppress(CacheDown, RedisError, OSError):
                self._hear()
            self._stopped.wait(FLUSH_INTERVAL)

    def _hear(self) -> None:
        subscription: Any = self._connection.reach(_subscription)
        try:
            subscription.subscribe(_channel(self.process))
            while not self._stopped.is_set():
                message = subscription.get_message(timeout=0.5)
                if message is not None:
                    self.wanted(message["data"].decode())
        finally:
            subscription.close()


def _read_news(places: dict[Any, Any], redis: Redis) -> list[Any]:
    return list(redis.xread(places, block=BLOCK_MS) or ())


def _subscription(redis: Any) -> Any:
    return redis.pubsub(ignore_subscribe_messages=True)


def _channel(process: str) -> str:
    return f"forebay:wanted:{process}"


def _order(identity: bytes) -> tuple[int, int]:
    milliseconds, _, number = identity.partition(b"-")
    return int(milliseconds), int(number)
