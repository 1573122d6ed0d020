"""Opens the database: which engine, which pool, and the tables that are missing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError

from services.gateway.accounts.credentials import password_hasher
from services.gateway.accounts.store import Accounts
from services.gateway.accounts.tables import Base

WAIT = 5.0
"""Seconds to wait for a lock, a free connection or a connect: longer and the request is better failed than held."""

_CREATE_LOCK = 0x666F7265
"""PostgreSQL's advisory lock under which one process at a time creates tables."""


def open_accounts(url: str, *, pool_size: int, key_secret: str, hasher: PasswordHasher | None = None) -> Accounts:
    """The accounts at a SQLAlchemy URL, of PostgreSQL or a SQLite file; makes the tables that are missing, whichever
    process comes first.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database can't be reached or written.
        OSError: the folder of a SQLite file can't be made.
    """
    address = make_url(url)
    sqlite = address.get_backend_name() == "sqlite"
    if sqlite and address.database and address.database != ":memory:":
        file = Path(address.database)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
    engine = create_engine(
        address,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=WAIT,
        pool_pre_ping=True,
        connect_args={"timeout" if sqlite else "connect_timeout": WAIT if sqlite else int(WAIT)},
    )
    if sqlite:
        _prepare_sqlite(engine)
    with engine.begin() as connection:
        if sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATE_LOCK})
        Base.metadata.create_all(connection)
    return Accounts(engine, key_secret=key_secret, hasher=hasher or password_hasher())


def _prepare_sqlite(engine: Engine) -> None:
    """Foreign keys on, in every connection; WAL mode, so that readers and the one writer don't wait for each other.

    `timeout` of the driver is SQLite's busy_timeout. The step to WAL needs the file for itself, and now and then fails
    at once when several open a new file together, whatever the timeout: about once in 700 such openings.
    """

    @event.listens_for(engine, "connect")
    def _foreign_keys(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON").close()

    deadline = time.monotonic() + 2 * WAIT
    while True:
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        except OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
