"""One HTTP exchange with one pod: send, wait for the status, read the body as it comes, abort from outside.

Built on `http.client` rather than on a pooling client, for one reason: the gateway must be able to end an exchange from
outside at any moment, also while it waits for the status line, so that a client that hangs up frees its slot in the
engine. That needs the socket, which pooling clients hide until the response has begun.
"""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

CONNECT_TIMEOUT = 2.0
"""Seconds for the TCP connection: a pod is near, and another one may be free."""
BACKSTOP = 2.0
"""Seconds after the deadline at which the gateway gives up waiting; the pod is to answer by itself before."""
PIECE = 65536
VANISHED = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000),
)
"""Socket options by which a pod whose host or network is gone, and so never closes the connection, is noticed within
15 seconds instead of at the request's deadline."""


class Unreachable(Exception):
    """The pod did not take the request: nothing of it was worked on, another pod may be tried."""


class Broken(Exception):
    """The pod went away after it had taken the request."""


class Pool:
    """Idle keep-alive connections to one pod."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.prefix = parts.path.rstrip("/")
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._address = (parts.hostname or "", parts.port)
        self._idle: deque[HTTPConnection] = deque(maxlen=256)

    def take(self) -> HTTPConnection | None:
        """An idle connection, the most recently used first, None when there is none."""
        return self._idle.pop() if self._idle else None

    def open(self) -> HTTPConnection:
        """A new connection.

        Raises:
            Unreachable: nobody answers at the address.
        """
        connection = self._kind(*self._address, timeout=CONNECT_TIMEOUT)
        try:
            connection.connect()
            for level, option, value in VANISHED:
                connection.sock.setsockopt(level, option, value)
        except OSError as error:
            raise Unreachable(str(error)) from error
        return connection

    def give(self, connection: HTTPConnection) -> None:
        """Takes a connection back whose response has been read to its end."""
        self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


class Exchange:
    """A request to a pod and its response."""

    def __init__(self, pool: Pool, deadline: float) -> None:
        self._pool = pool
        self._deadline = deadline
        self._connection: HTTPConnection | None = None
        self._response: HTTPResponse | None = None
        self._ended = False
        self.aborted = False

    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> HTTPResponse:
        """Sends the request and waits for the response's status and headers.

        Raises:
            Unreachable: the pod could not be reached.
            Broken: it went away without an answer, or `abort` was called.
            TimeoutError: it did not answer within the deadline and the backstop.
        """
        idle = self._pool.take()
        if idle is not None:
            try:
                return self._send(idle, method, path, headers, body)
            except Broken:
                # The pod may have closed the connection while it lay idle, which says nothing about the request.
                if self.aborted:
                    raise
        return self._send(self._pool.open(), method, path, headers, body)

    def _send(
        self, connection: HTTPConnection, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> HTTPResponse:
        self._connection = connection
        try:
            if self.aborted:  # while the connection was being made
                raise ConnectionAbortedError
            self._limit_wait()
            connection.request(method, self._pool.prefix + path, body=body, headers=dict(headers))
            self._response = connection.getresponse()
        except (OSError, HTTPException) as error:
            connection.close()
            if _deadline_passed(error):
                raise TimeoutError from None
            raise Broken(f"the connection ended before an answer ({type(error).__name__})") from error
        return self._response

    def read(self) -> bytes:
        """The whole body.

        Raises:
            Broken: the pod went away before its end, or `abort` was called.
            TimeoutError: the deadline and the backstop passed.
        """
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The body in pieces as they come. Raises as `read` does."""
        assert self._response is not None
        while True:
            try:
                self._limit_wait()
                piece = self._response.read1(PIECE)
            except (OSError, HTTPException, ValueError) as error:
                if _deadline_passed(error):
                    raise TimeoutError from None
                raise Broken(f"the connection ended in mid-answer ({type(error).__name__})") from error
            if not piece:
                # A cut chunked body raises; one with a Content-Length just ends, with something left of its length.
                if self.aborted or self._response.length:
                    raise Broken("the connection ended in mid-answer")
                self._ended = True
                return
            yield piece

    def abort(self) -> None:
        """Ends the exchange, also from another greenlet that must not wait: a read that waits ends at once."""
        self.aborted = True
        sock = self._connection.sock if self._connection is not None else None
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hands the connection back when the body was read to its end, else closes it, which tells the pod to stop."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._response is not None:
            self._response.close()
        if self._ended and self._response is not None and not self._response.will_close:
            self._pool.give(connection)
        else:
            connection.close()

    def _limit_wait(self) -> None:
        remaining = self._deadline + BACKSTOP - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        if self._connection is not None and self._connection.sock is not None:
            self._connection.sock.settimeout(remaining)


def _deadline_passed(error: Exception) -> bool:
    """Tells our own wait, which ended, from the kernel's word that the peer is gone: both are a `TimeoutError`."""
    return isinstance(error, TimeoutError) and error.errno != errno.ETIMEDOUT
