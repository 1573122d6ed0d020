"""A client that leaves is noticed, with real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from services.inference.disconnect import Watcher

SOON = 5.0


@pytest.fixture(scope="module")
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield client, server


Pair = tuple[socket.socket, socket.socket]


def test_a_client_that_closes_is_noticed(watcher: Watcher, pair: Pair) -> None:
    client, server = pair
    gone = threading.Event()
    with watcher.watch(server, gone.set):
        assert not gone.is_set()
        client.close()
        assert gone.wait(SOON)


def test_a_client_that_resets_is_noticed(watcher: Watcher, pair: Pair) -> None:
    client, server = pair
    gone = threading.Event()
    with watcher.watch(server, gone.set):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        assert gone.wait(SOON)


def test_a_client_that_was_gone_before_is_noticed_at_once(watcher: Watcher, pair: Pair) -> None:
    client, server = pair
    client.close()
    gone = threading.Event()
    with watcher.watch(server, gone.set):
        assert gone.wait(SOON)


def test_a_client_that_sends_more_is_not_gone(watcher: Watcher, pair: Pair) -> None:
    client, server = pair
    other_client, other = socket.socketpair()
    called: list[str] = []
    noticed = threading.Event()
    with other, watcher.watch(server, lambda: called.append("server")), watcher.watch(other, noticed.set):
        client.sendall(b"GET / HTTP/1.1\r\n")
        other_client.close()
        assert noticed.wait(SOON)
        assert called == []


def test_nobody_is_called_after_the_block(watcher: Watcher, pair: Pair) -> None:
    client, server = pair
    called: list[str] = []
    with watcher.watch(server, lambda: called.append("late")):
        pass
    client.close()
    noticed = threading.Event()
    # The same socket watched anew: when this call came, the earlier one would have come before it.
    with watcher.watch(server, noticed.set):
        assert noticed.wait(SOON)
    assert called == []


def test_a_callback_that_fails_does_not_end_the_watch(watcher: Watcher, pair: Pair) -> None:
    def fail() -> None:
        raise RuntimeError("on purpose")

    client, server = pair
    with watcher.watch(server, fail):
        client.close()
    ours, theirs = socket.socketpair()
    noticed = threading.Event()
    with ours, watcher.watch(ours, noticed.set):
        theirs.close()
        assert noticed.wait(SOON)


def test_without_a_socket_there_is_nothing_to_watch(watcher: Watcher) -> None:
    with watcher.watch(None, lambda: None):
        pass
