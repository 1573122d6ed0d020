"""Opens the database: which engine, which pool, and the schema as it is today."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

from services.gateway.accounts.credentials import password_hasher
from services.gateway.accounts.migrate import upgrade
from services.gateway.accounts.sessions import Sessions
from services.gateway.accounts.store import Accounts

log = logging.getLogger("forebay.accounts")

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
    engine = make_engine(url, pool_size=pool_size, wait=wait)
    try:
        prepare(engine)
    except BaseException:
        engine.dispose()
        raise
    return Accounts(Sessions(engine, wait=wait), key_secret=key_secret, hasher=hasher or password_hasher())


def await_accounts(url: str, *, pool_size: int, key_secret: str, wait: float = WAIT, pause: float = 1.0) -> Accounts:
    """The same for a process that must not end because there is no database: where it can't be opened now, the accounts
    are `closed`, and it is tried again in the background, every `pause` seconds, until it can.

    Returns after `wait` seconds at most, since the first try may wait for a server that does not answer, or for another
    process that changes the schema.

    Raises:
        sqlalchemy.exc.ArgumentError: there can't be a database of this URL.
    """
    sessions = Sessions(make_engine(url, pool_size=pool_size, wait=wait), wait=wait)
    sessions.closed = "The database of accounts is being opened."
    tried = threading.Event()

    def open_at_last() -> None:
        while sessions.closed is not None:
            try:
                prepare(sessions.engine)
            except Exception as error:  # whatever it is, the process can say so as long as it is there
                _say_why(sessions, error)
                tried.set()
                time.sleep(pause)
            else:
                sessions.closed = None
                if tried.is_set():
                    log.info("the database is there")
        tried.set()

    threading.Thread(target=open_at_last, name="open-accounts", daemon=True).start()
    tried.wait(wait)
    return Accounts(sessions, key_secret=key_secret, hasher=password_hasher())


def _say_why(sessions: Sessions, error: Exception) -> None:
    """Into the log in full, once. Whoever asks for the process's state may be anybody, and learns the kind alone."""
    reason = f"The database of accounts can't be opened yet ({type(error).__name__})."
    if sessions.closed != reason:
        expected = isinstance(error, OperationalError | OSError)
        told = str(error.orig) if isinstance(error, DBAPIError) else str(error)
        log.error("the database can't be opened yet", exc_info=not expected, extra={"error": told.strip()})
    sessions.closed = reason


def make_engine(url: str, *, pool_size: int, wait: float = WAIT) -> Engine:
    """The engine at a SQLAlchemy URL, with a pool of `pool_size` connections and no more. It has none yet.

    Raises:
        sqlalchemy.exc.ArgumentError: there can't be a database of this URL.
    """
    address = make_url(url)
    sqlite = address.get_backend_name() == "sqlite"
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
        _keep_foreign_keys(engine)
    elif engine.dialect.name == "postgresql":
        _bound_statements(engine, wait)
    return engine


def prepare(engine: Engine) -> None:
    """Makes a SQLite file where it is missing, which only its owner may read, and brings the schema to today's.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database can't be reached or written.
        OSError: the file, or its folder, can't be made.
    """
    if engine.dialect.name == "sqlite":
        name = engine.url.database
        if name and name != ":memory:":
            file = Path(name)
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch(mode=0o600)
        _turn_to_wal(engine)
    migrate(engine)


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


def _keep_foreign_keys(engine: Engine) -> None:
    """SQLite checks them only where each connection asks for it."""

    @event.listens_for(engine, "connect")
    def _foreign_keys(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON").close()


def _turn_to_wal(engine: Engine) -> None:
    """WAL mode, so that readers and the one writer don't wait for each other.

    `timeout` of the driver is SQLite's busy_timeout. The step to WAL needs the file for itself, and now and then fails
    at once when several open a new file together, whatever the timeout: about once in 700 such openings.
    """
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
