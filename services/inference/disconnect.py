"""Noticing at once that a client went away: one thread sleeps in epoll over the sockets of all running requests.

A thread that computes or waits for a token never looks at its socket, and a write fails only when there is something to
write. The kernel, though, reports the end of the other side (`EPOLLRDHUP`) without anyone reading or polling. A client
that closes only its sending half counts as gone: no HTTP client in use does that.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

log = logging.getLogger("forebay.disconnect")


class Watcher:
    """Calls back when the other side of a socket is gone."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        threading.Thread(target=self._loop, name="disconnect", daemon=True).start()

    @contextmanager
    def watch(self, connection: socket.socket | None, gone: Callable[[], None]) -> Iterator[None]:
        """Calls `gone`, once, from another thread, if the client leaves within the block.

        Args:
            connection: the client's socket; None, as in a test client, is never gone.
        """
        if connection is None:
            yield
            return
        number = connection.fileno()
        with self._lock:
            self._callbacks[number] = gone
            self._epoll.register(number, select.EPOLLRDHUP | select.EPOLLONESHOT)
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.pop(number, None)
                with suppress(OSError):  # closed meanwhile: the kernel has forgotten it already
                    self._epoll.unregister(number)

    def _loop(self) -> None:
        while True:
            for number, _ in self._epoll.poll():
                with self._lock:
                    gone = self._callbacks.pop(number, None)
                if gone is not None:
                    try:
                        gone()
                    except Exception:
                        log.exception("a callback failed")
