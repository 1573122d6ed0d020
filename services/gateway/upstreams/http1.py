"""HTTP/1.1 as the gateway speaks it with pods: the head of a request as bytes, and bytes as a response. Without I/O.

A client library's generality costs more than all else that is done for a chunk of a stream. This reads what RFC 9112
asks of a client, and refuses what it leaves open to be read in two ways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

MAX_HEAD = 65536
"""Bytes that a response's head, or a line between its chunks, may have."""
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: .*)?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_NO_BODY = (204, 304)


class Malformed(ValueError):
    """The bytes are not a response after RFC 9112."""


class Headers(dict[str, str]):
    """A response's headers, by their names in lower case."""

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        """The value of the header, however its name is written."""
        return super().get(name.lower(), default)


def request_head(method: str, target: str, host: str, headers: Mapping[str, str], length: int | None) -> bytes:
    """The head of a request with a body of `length` bytes, None where there is none.

    Raises:
        ValueError: a value would end its line and begin another header.
    """
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *[f"{name}: {value}" for name, value in headers.items()]]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
        raise ValueError("a header of the request holds a line break")
    return f"{head}\r\n\r\n".encode("latin-1")


class Response:
    """The head of a response, and its body as it is fed.

    `ended`: the body is complete. `persists`: the connection can then be used again. `length`: how many bytes of the
    body are still to come, where that was said.
    """

    __slots__ = ("_in_chunk", "_rest", "_state", "ended", "headers", "length", "persists", "status")

    def __init__(self, head: bytes) -> None:
        """
        Raises:
            Malformed: it is not the head of a response, or leaves open where the body ends.
        """
        first, *lines = head.decode("latin-1").split("\r\n")
        status = _STATUS.fullmatch(first)
        if status is None:
            raise Malformed("no status line")
        self.status = int(status[2])
        self.headers = headers = Headers()
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or _NAME.fullmatch(name) is None:  # folded lines and blanks before the colon among them
                raise Malformed("a line of the head is not a header")
            name, value = name.lower(), value.strip(" \t")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        connection = (headers.get("connection") or "").lower()
        self.persists = "close" not in connection if status[1] == "1" else "keep-alive" in connection
        self.length: int | None = None
        self.ended = False
        self._rest = b""
        self._in_chunk = 0
        self._state: Literal["sized", "size", "data", "end of data", "trailers", "until close"]
        self._state = self._framing()

    def _framing(self) -> Literal["sized", "size", "until close"]:
        """How the body's end is told (RFC 9112, section 6.3)."""
        coding, length = self.headers.get("transfer-encoding"), self.headers.get("content-length")
        if self.status in _NO_BODY:
            coding, length = None, "0"
        if coding is not None:
            if coding.lower() != "chunked" or length is not None:
                raise Malformed("it is not clear where the body ends")
            return "size"
        if length is None:
            self.persists = False
            return "until close"
        if _LENGTH.fullmatch(length) is None:
            raise Malformed("the length is not a number")
        self.length = int(length)
        self.ended = not self.length
        return "sized"

    def feed(self, data: bytes) -> bytes:
        """The part of the body in `data`, which is what was received next.

        Raises:
            Malformed: the body is not framed as it should be.
        """
        if self._state == "until close":
            return data
        if self.length is not None:
            if len(data) > self.length:
                data, self.persists = data[: self.length], False  # nobody asked for what follows
            self.length -= len(data)
            self.ended = not self.length
            return data
        return self._feed_chunks(data)

    def close(self) -> bool:
        """The peer has closed the connection: whether that was the body's end."""
        self.ended = self.ended or self._state == "until close"
        return self.ended

    def _feed_chunks(self, data: bytes) -> bytes:
        if self._rest:
            data, self._rest = self._rest + data, b""
        parts: list[bytes] = []
        at, state = 0, self._state
        while not self.ended:
            if state == "data":
                part = data[at : at + self._in_chunk]
                parts.append(part)
                at += len(part)
                self._in_chunk -= len(part)
                if self._in_chunk:
                    break
                state = "end of data"
            end = data.find(b"\r\n", at)
            if end < 0:
                self._rest = data[at:]
                if len(self._rest) > MAX_HEAD:
                    raise Malformed("a line without an end")
                break
            if state == "size":
                size = _CHUNK_SIZE.fullmatch(data, at, end)
                if size is None:
                    raise Malformed("a chunk without a size")
                self._in_chunk = int(size[1], 16)
                state = "data" if self._in_chunk else "trailers"
            elif state == "end of data":
                if end != at:
                    raise Malformed("a chunk longer than its size")
                state = "size"
            else:
                self.ended = end == at
            at = end + 2
        else:
            self.persists = self.persists and at == len(data)
        self._state = state
        return parts[0] if len(parts) == 1 else b"".join(parts)
