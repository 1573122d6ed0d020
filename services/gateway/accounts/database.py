"""Opens the database: which engine, which pool, and the schema as it is today."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError

from services.gateway.accounts.credentials import password_hasher
from services.gateway.accounts.migrate import upgrade
from services.gateway.accounts.sessions import Sessions
from services.gateway.accounts.store import Accounts

WAIT = 5.0
"""Seconds to wait for a lock, a free connection, a connect or an answer, where the settings say nothing else: longer
and the request is better failed than held."""

_MIGRATION_LOCK = 0x666F7265
"""PostgreSQL's advisory lock under which one process at a time changes the schema."""


def open_accounts(
    url: str, *, pool_size: int, key_secret: str, wait: float = WAIT, hasher: PasswordHasher | None = None
) -> Accounts:
    """The accounts at a SQLAlchemy URL, of PostgreSQL or a SQLite file; brings the schema to today's, whichever process
    comes first.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database can't be reached or written.
        OSError: the folder of a SQLite file can't be made.
    """
    engine = open_engine(url, pool_size=pool_size, wait=wait)
    try:
        migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return Accounts(Sessions(engine, wait=wait), key_secret=key_secret, hasher=hasher or password_hasher())


def open_engine(url: str, *, pool_size: int, wait: float = WAIT) -> Engine:
    """The engine at a SQLAlchemy URL, with a pool of `pool_size` connections and no more.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: a SQLite file can't be opened.
        OSError: its folder can't be made.
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
        pool_timeout=wait,
        pool_pre_ping=True,
        # libpq takes whole seconds, and fewer than two as two.
        connect_args={"timeout": wait} if sqlite else {"connect_timeout": max(2, round(wait))},
    )
    if sqlite:
        _prepare_sqlite(engine)
    elif engine.dialect.name == "postgresql":
        _bound_statements(engine, wait)
    return engine


def migrate(engine: Engine) -> None:
    """Brings the schema to today's, one process at a time, as a whole or not at all.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database can't be reached or written.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif engine.dialect.name == "postgresql":
            # A migration may take its time, and so may the wait for another process that migrates.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        upgrade(connection)


def _bound_statements(engine: Engine, wait: float) -> None:
    """The server ends a statement after `wait` seconds; said by a statement, as poolers refuse it at the connect."""

    @event.listens_for(engine, "connect")
    def _statement_timeout(connection: Any, _record: Any) -> None:
        connection.autocommit = True
        connection.execute(f"SET statement_timeout = {int(wait * 1000)}")
        connection.autocommit = False


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
