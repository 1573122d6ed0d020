"""A client's socket, as gunicorn writes an answer to it."""

from __future__ import annotations

from socket import socket
from typing import Any


class Outgoing:
    """Sends the head of one answer with the first piece of its body.

    gunicorn sends them apart, at the same time: two system calls, two packets, and a client that is woken twice. Each
    piece goes out by a plain `send`; gevent's `sendall` asks the kernel for its buffer's size first, at every chunk of
    every stream. `flush` must be called at the answer's end, which may have no body.
    """

    __slots__ = ("_head", "_socket")

    def __init__(self, client: socket) -> None:
        self._socket = client
        self._head: bytes | None = None
        """None until gunicorn has sent it, empty once the client has it."""

    def sendall(self, data: bytes) -> None:
        """As a socket's."""
        if self._head is None:
            self._head = data
            return
        if self._head:
            data, self._head = self._head + data, b""
        sent = self._socket.send(data)
        if sent < len(data):
            self._socket.sendall(memoryview(data)[sent:])

    def flush(self) -> None:
        """Sends the head of an answer that has no body."""
        if self._head:
            data, self._head = self._head, b""
            self._socket.sendall(data)

    def sendfile(self, *args: Any, **options: Any) -> int:
        """As a socket's."""
        self.flush()
        return self._socket.sendfile(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)
