"""Looks in the background whether Redis is there, so that the gauge and the alert on it do not depend on traffic."""

from __future__ import annotations

import threading
from contextlib import suppress

from prometheus_client import Gauge

from services.cache.connection import CacheDown, Connection

INTERVAL = 5.0


def watch(connection: Connection, down: Gauge) -> None:
    """Sets `down` to 1 while Redis is gone and to 0 while it is there, for as long as the process lives."""

    def look() -> None:
        forever = threading.Event()
        while True:
            with suppress(CacheDown):
                connection.ping()
            down.set(connection.down)
            forever.wait(INTERVAL)

    threading.Thread(target=look, name="pulse", daemon=True).start()
