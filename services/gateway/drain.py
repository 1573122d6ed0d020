"""How a gateway process ends without cutting a stream or refusing a request: gunicorn's gevent worker, with a drain.

After SIGTERM:

1. for `drain_delay` seconds requests are still taken, while `/readyz` answers 503, so that load balancers send no more;
   each answer says `Connection: close`, so that they don't come back on connections that they hold;
2. then no new connection is taken, and those that lie idle are closed;
3. what still runs has `shutdown_grace` seconds to end. A stream that has not is ended by an error event, a waiting
   request by 503 (`services.gateway.relay`, `services.gateway.dispatch`).

gunicorn alone refuses at once, and waits for connections that only lie idle as if they were requests.
"""

from __future__ import annotations

import logging
import math
import socket
import struct
import time
from contextlib import suppress
from fcntl import ioctl
from termios import FIONREAD
from typing import Any

import gevent
from gunicorn.workers.ggevent import GeventWorker

from services.common.settings import GatewaySettings
from services.gateway.outgoing import Outgoing

log = logging.getLogger("forebay.drain")
IDLE = 0.5
"""Seconds without a byte after which a connection that is to be closed is taken to be idle."""
LOOK = 0.1
CUT_IN = 5
"""Seconds after the grace in which requests that were cut say so to their clients and are settled, and the ledger gets
what it can take."""

_begun = False


def draining() -> bool:
    """Whether this process has been asked to end."""
    return _begun


def longest(settings: GatewaySettings) -> int:
    """Seconds from SIGTERM to the end of the process, at most."""
    return math.ceil(settings.drain_delay + settings.shutdown_grace) + CUT_IN


class Worker(GeventWorker):  # type: ignore[misc]
    """Takes connections until SIGTERM, then drains."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._keepalive = self.cfg.keepalive
        self._idle: dict[socket.socket, float] = {}
        """Connections that wait for a request, with the time since when."""
        self._busy: set[gevent.Greenlet] = set()
        """Those that answer one."""
        self._cut = False

    def handle_exit(self, *_: object) -> None:
        global _begun  # noqa: PLW0603
        if not _begun:
            _begun = True
            gevent.spawn(self._drain)

    def timeout_ctx(self) -> gevent.Timeout:
        return gevent.Timeout(self._keepalive, False)

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        self._idle[client] = time.monotonic()
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle.pop(client, None)

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> None:
        greenlet = gevent.getcurrent()
        self._idle.pop(sock, None)
        self._busy.add(greenlet)
        outgoing = Outgoing(sock)
        try:
            super().handle_request(listener_name, req, outgoing, addr)
        finally:
            with suppress(OSError):
                outgoing.flush()
            self._busy.discard(greenlet)
            self._idle[sock] = time.monotonic()
        if self._cut:
            raise StopIteration  # by which gunicorn closes the connection

    def _drain(self) -> None:
        settings = GatewaySettings()
        log.info("draining", extra={"requests": len(self._busy), "seconds": settings.drain_delay})
        self.cfg.set("keepalive", 0)  # by which gunicorn says `Connection: close`
        gevent.sleep(settings.drain_delay)
        self.alive = False  # by which it closes its listener
        deadline = time.monotonic() + settings.shutdown_grace
        while time.monotonic() < deadline and (self._busy or self._idle):
            self._close_idle()
            gevent.sleep(LOOK)
        if self._busy:
            log.warning("requests are cut", extra={"requests": len(self._busy)})
            self._cut = True
            gevent.killall(list(self._busy), block=False)

    def _close_idle(self) -> None:
        """Has connections end on which nothing comes. What has come already is still read and answered."""
        now = time.monotonic()
        for sock, since in list(self._idle.items()):
            with suppress(OSError):
                if now - since > IDLE and not _waiting_bytes(sock):
                    sock.shutdown(socket.SHUT_RD)


def _waiting_bytes(sock: socket.socket) -> int:
    (count,) = struct.unpack("i", ioctl(sock.fileno(), FIONREAD, bytes(4)))
    return int(count)
