"""A home of its own for each test, ports that are taken, and none of our variables in the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from forebay.state import Home, open_home
from tests.ports import free_row


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FOREBAY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


@pytest.fixture
def listen() -> Iterator[Callable[[int], int]]:
    """Takes a port, 0 for any, until the end of the test; returns its number."""
    with ExitStack() as open_sockets:

        def take(port: int) -> int:
            server = open_sockets.enter_context(socket.socket())
            server.bind(("127.0.0.1", port))
            server.listen()
            number: int = server.getsockname()[1]
            return number

        yield take


@pytest.fixture
def row_of_ports() -> int:
    """The first of twelve ports in a row that are free now."""
    return free_row(12)
