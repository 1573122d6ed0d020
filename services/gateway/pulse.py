"""Looks in the background whether Redis and SQL are there, so that the gauges and the alerts on them do not depend on
traffic."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import Gauge

from services.cache.connection import CacheDown, Connection
from services.common.errors import AccountsUnavailable
from services.gateway.accounts import Accounts

INTERVAL = 5.0


def watch(connection: Connection, down: Gauge) -> None:
    """Sets `down` to 1 while Redis is gone and to 0 while it is there, for as long as the process lives."""

    def look() -> None:
        with suppress(CacheDown):
            connection.ping()
        down.set(connection.down)

    _repeat("pulse-redis", look)


def watch_accounts(accounts: Accounts, down: Gauge) -> None:
    """The same for the accounts' database."""

    def look() -> None:
        with suppress(AccountsUnavailable):
            accounts.sessions.ping()
        down.set(accounts.sessions.down)

    _repeat("pulse-sql", look)


def _repeat(name: str, look: Callable[[], None]) -> None:
    def forever() -> None:
        pause = threading.Event()
        while True:
            look()
            pause.wait(INTERVAL)

    threading.Thread(target=forever, name=name, daemon=True).start()
