"""Sees a client hang up while the gateway waits for a pod, by an event of the loop instead of by a failing write."""

from __future__ import annotations

from collections.abc import Callable
from socket import socket

import gevent
from gevent import monkey

_select = monkey.get_original("select", "poll")
_POLLRDHUP = 0x2000
"""Linux: the peer has shut its side down. `select.POLLRDHUP` is missing after gevent has patched the module."""
_READABLE = 1


class HangupWatch:
    """Calls `on_hangup` once, from the loop (it must not wait), when the peer of `client` goes away."""

    def __init__(self, client: socket, on_hangup: Callable[[], None]) -> None:
        self._fileno = client.fileno()
        self._poll = _select()
        self._poll.register(self._fileno, _POLLRDHUP)
        self._on_hangup = on_hangup
        self._watcher = gevent.get_hub().loop.io(self._fileno, _READABLE)
        self._watcher.start(self._readable)

    def _readable(self) -> None:
        self._watcher.stop()  # bytes of a pipelined request would wake the loop again and again
        if self._poll.poll(0):
            self._on_hangup()

    def close(self) -> None:
        """Ends the watch; must be called before the socket is closed."""
        self._watcher.stop()
        self._watcher.close()
