"""An answer on its way out: the same bytes as a socket would send, the head not by itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.gateway.outgoing import Outgoing

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


def test_the_head_waits_for_the_first_piece_and_the_others_for_nothing(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    outgoing = Outgoing(ours)
    theirs.setblocking(False)
    outgoing.sendall(HEAD)
    with pytest.raises(BlockingIOError):
        theirs.recv(100)
    outgoing.sendall(b"one")
    assert theirs.recv(100) == HEAD + b"one"
    outgoing.sendall(b"two")
    assert theirs.recv(100) == b"two"


def test_a_head_without_a_body_goes_out_at_the_end_and_once(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    outgoing = Outgoing(ours)
    outgoing.flush()
    outgoing.sendall(HEAD)
    outgoing.flush()
    outgoing.flush()
    ours.shutdown(socket.SHUT_WR)
    assert theirs.recv(100) == HEAD
    assert theirs.recv(100) == b""


def test_a_body_that_is_larger_than_the_sockets_buffer_goes_out_whole(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    body = bytes(range(256)) * 8192
    outgoing = Outgoing(ours)

    def send() -> None:
        outgoing.sendall(HEAD)
        outgoing.sendall(body)
        ours.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    got = b"".join(iter(lambda: theirs.recv(65536), b""))
    sender.join()
    assert got == HEAD + body


def test_a_file_comes_after_its_head(ends: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    ours, theirs = ends
    path = tmp_path / "file"
    path.write_bytes(b"of the file")
    outgoing = Outgoing(ours)
    outgoing.sendall(HEAD)
    with path.open("rb") as file:
        outgoing.sendfile(file)
    assert theirs.recv(100) == HEAD + b"of the file"


def test_all_else_is_the_sockets(ends: tuple[socket.socket, socket.socket]) -> None:
    assert Outgoing(ends[0]).fileno() == ends[0].fileno()
