"""One HTTP exchange with one pod: send, wait for the status, read the body as it comes, abort from outside.

On a bare socket rather than with a pooling client, for two reasons. The gateway must be able to end an exchange from
outside at any moment, also while it waits for the status line, so that a client that hangs up frees its slot in the
engine; pooling clients hide the socket until the response has begun. And every chunk of every stream passes here.
"""

from __future__ import annotations

import errno
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from services.gateway.upstreams.http1 import MAX_HEAD, Malformed, Response, request_head

CONNECT_TIMEOUT = 2.0
"""Seconds for the TCP connection: a pod is near, and another one may be free."""
BACKSTOP = 2.0
"""Seconds after the deadline at which the gateway gives up waiting; the pod is to answer by itself before."""
PIECE = 16384
INTERIM = range(100, 200)
VANISHED = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000),
)
"""Socket options: no delay for small packets, and those by which a pod whose host or network is gone, and so never
closes the connection, is noticed within 15 seconds instead of at the request's deadline."""


class Unreachable(Exception):
    """The pod did not take the request: nothing of it was worked on, another pod may be tried."""


class Broken(Exception):
    """The pod went away after it had taken the request."""


class Pool:
    """Idle keep-alive connections to one pod."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self.prefix = parts.path.rstrip("/")
        self.host = parts.netloc.rpartition("@")[2]
        self._address = (parts.hostname or "", parts.port or (443 if secure else 80))
        self._tls = ssl.create_default_context() if secure else None
        self._idle: deque[socket.socket] = deque(maxlen=256)

    def take(self) -> socket.socket | None:
        """An idle connection, the most recently used first, None when there is none."""
        return self._idle.pop() if self._idle else None

    def open(self) -> socket.socket:
        """A new connection.

        Raises:
            Unreachable: nobody answers at the address.
        """
        try:
            connection = socket.create_connection(self._address, CONNECT_TIMEOUT)
            for level, option, value in VANISHED:
                connection.setsockopt(level, option, value)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_hostname=self._address[0])
        except OSError as error:
            raise Unreachable(str(error)) from error
        return connection

    def give(self, connection: socket.socket) -> None:
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
        self._connection: socket.socket | None = None
        self._response: Response | None = None
        self._received = b""
        """What came behind the head."""
        self.aborted = False

    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        """Sends the request and waits for the response's status and headers.

        Raises:
            Unreachable: the pod could not be reached.
            Broken: it went away without an answer, or `abort` was called.
            TimeoutError: it did not answer within the deadline and the backstop.
        """
        pool = self._pool
        length = None if body is None else len(body)
        request = request_head(method, pool.prefix + path, pool.host, headers, length) + (body or b"")
        idle = pool.take()
        if idle is not None:
            try:
                return self._send(idle, request)
            except Broken:
                # The pod may have closed the connection while it lay idle, which says nothing about the request.
                if self.aborted:
                    raise
        return self._send(pool.open(), request)

    def _send(self, connection: socket.socket, request: bytes) -> Response:
        self._connection = connection
        try:
            if self.aborted:  # while the connection was being made
                raise ConnectionAbortedError
            self._limit_wait(connection)
            connection.sendall(request)
            self._response = self._read_head(connection)
        except (OSError, Malformed) as error:
            connection.close()
            if _deadline_passed(error):
                raise TimeoutError from None
            raise Broken(f"the connection ended before an answer ({type(error).__name__})") from error
        return self._response

    def _read_head(self, connection: socket.socket) -> Response:
        received = b""
        while True:
            head, end, rest = received.partition(b"\r\n\r\n")
            if end:
                response = Response(head)
                if response.status not in INTERIM:
                    self._received = rest
                    return response
                received = rest
                continue
            if len(received) > MAX_HEAD:
                raise Malformed("a head without an end")
            piece = connection.recv(PIECE)
            if not piece:
                raise ConnectionResetError
            received += piece

    def read(self) -> bytes:
        """The whole body.

        Raises:
            Broken: the pod went away before its end, or `abort` was called.
            TimeoutError: the deadline and the backstop passed.
        """
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The body in pieces as they come. Raises as `read` does."""
        response, connection = self._response, self._connection
        assert response is not None
        assert connection is not None
        received, self._received = self._received, b""
        try:
            while True:
                if received and (piece := response.feed(received)):
                    yield piece
                if response.ended:
                    return
                self._limit_wait(connection)
                received = connection.recv(PIECE)
                if not received:
                    if self.aborted or not response.close():
                        raise ConnectionResetError
                    return
        except (OSError, Malformed) as error:
            if _deadline_passed(error):
                raise TimeoutError from None
            raise Broken(f"the connection ended in mid-answer ({type(error).__name__})") from error

    def abort(self) -> None:
        """Ends the exchange, also from another greenlet that must not wait: a read that waits ends at once."""
        self.aborted = True
        if self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hands the connection back when the body was read to its end, else closes it, which tells the pod to stop."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        response = self._response
        if response is not None and response.ended and response.persists and not self.aborted:
            self._pool.give(connection)
        else:
            connection.close()

    def _limit_wait(self, connection: socket.socket) -> None:
        remaining = self._deadline + BACKSTOP - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        connection.settimeout(remaining)


def _deadline_passed(error: Exception) -> bool:
    """Tells our own wait, which ended, from the kernel's word that the peer is gone: both are a `TimeoutError`."""
    return isinstance(error, TimeoutError) and error.errno != errno.ETIMEDOUT
