"""Transactions, and what happens to them while the database is gone: they fail soon, and most of them at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gevent import Timeout, monkey
from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.orm import Session, sessionmaker

from services.common.errors import AccountsUnavailable

log = logging.getLogger("forebay.accounts")

_ambient: ContextVar[Session | None] = ContextVar("ambient_session", default=None)


class Sessions:
    """Short transactions over one engine, each bounded by `wait` seconds from the first look for a connection on.

    After a failure to reach the server everything fails at once, and one transaction every `pause` seconds tries again.
    Up and down are logged once each. A SQLite file can be locked but not gone, so nothing pauses for it. While it
    is `closed`, everything fails at once.
    """

    def __init__(
        self, engine: Engine, *, wait: float, pause: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.engine = engine
        self._make = sessionmaker(engine, expire_on_commit=False)
        self._wait = wait
        self._pause = pause
        self._clock = clock
        self._remote = engine.dialect.name != "sqlite"
        self._retry_at: float | None = None
        self.closed: str | None = None
        """Why nothing can be read or written yet, in one sentence; None once it is known that the schema is there."""

    @property
    def down(self) -> bool:
        """Whether the last transaction could not reach the server, or none can be made yet."""
        return self._retry_at is not None or self.closed is not None

    def ping(self) -> None:
        """Looks whether the database answers.

        Raises:
            AccountsUnavailable: it does not.
        """
        with self.read() as session:
            session.execute(select(1))

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session to read with; the one of `transaction` where the caller is within.

        Raises:
            AccountsUnavailable: the database can't be reached, or does not answer in time.
        """
        ambient = _ambient.get()
        if ambient is not None:
            yield ambient
            return
        with self._guarded(), self._make() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are committed at the block's end; within `transaction`, at that one's end.

        Raises:
            AccountsUnavailable: the database can't be reached, or does not answer in time.
        """
        ambient = _ambient.get()
        if ambient is not None:
            yield ambient
            ambient.flush()
            return
        with self._guarded(), self._make.begin() as session:
            yield session

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is read and written within is one transaction, kept as a whole or not at all.

        Nothing within may wait for anything but the database: under gevent a greenlet that waits while it holds
        SQLite's lock stops the worker, since another one then waits for the lock in C.

        Raises:
            AccountsUnavailable: the database can't be reached, or does not answer in time.
        """
        with self._guarded(), self._make.begin() as session:
            if not self._remote:
                # Its lock from the beginning on: what was read here stays true until it is written upon.
                session.connection().exec_driver_sql("BEGIN IMMEDIATE")
            token = _ambient.set(session)
            try:
                yield
            finally:
                _ambient.reset(token)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        if self.closed is not None:
            raise AccountsUnavailable(retry_after=self._pause)
        now = self._clock()
        if self._retry_at is not None:
            if now < self._retry_at:
                raise AccountsUnavailable(retry_after=self._retry_at - now)
            self._retry_at = now + self._pause  # this one tries; the others keep failing at once meanwhile
        # The drivers bound the connect and the server the statement; a server that has stopped to answer is bounded
        # here. Elsewhere than in a gevent worker nobody waits but who started the command.
        seconds = self._wait if self._remote and monkey.is_module_patched("socket") else None
        bound = Timeout(seconds)
        bound.start()
        try:
            yield
        except (OperationalError, InterfaceError, PoolExhausted) as error:
            raise self._unavailable(error) from error
        except (DBAPIError, Timeout) as error:
            # The driver may stumble over the time-out in its own clean-up, and raise that.
            if seconds is None or bound.pending:
                raise
            raise self._unavailable(error) from error
        else:
            self._answered()
        finally:
            bound.close()

    def _unavailable(self, error: BaseException) -> AccountsUnavailable:
        if self._remote and _server_is_gone(error):
            if self._retry_at is None:
                log.error("the database is down: known keys go on for a while", extra={"error": type(error).__name__})
            self._retry_at = self._clock() + self._pause
        return AccountsUnavailable(retry_after=self._pause)

    def _answered(self) -> None:
        if self._retry_at is not None:
            log.info("the database is back")
            self._retry_at = None


def _server_is_gone(error: BaseException) -> bool:
    """Not so where the server itself refused a statement, as it does at a deadlock: then it has said which state."""
    if isinstance(error, OperationalError | InterfaceError):
        return error.connection_invalidated or getattr(error.orig, "sqlstate", None) is None
    return True
