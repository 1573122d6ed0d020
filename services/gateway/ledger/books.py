"""What the ledger asks of SQL. Nothing here blocks gevent's loop: where the driver would, a thread of its pool does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, Engine, Select, create_engine, delete, make_url, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from services.gateway.accounts.credentials import off_loop
from services.gateway.accounts.database import WAIT, make_engine
from services.gateway.ledger.table import ledger

Result = TypeVar("Result")
Row = dict[str, Any]

POOL = 3
"""Connections to PostgreSQL of one worker: the writer's, and two for questions."""
LONG_QUESTION = 60
"""Seconds that a sum over many rows may take."""


class BooksClosed(Exception):
    """SQL can't be reached or written now; the same may go well later."""


class BadRow(Exception):
    """SQL will never take this row."""


class Books:
    """The table `ledger`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        dialect = sqlite if self._sqlite else postgresql
        new = dialect.insert(ledger)
        # A call is one row, entered once, but for one case: Redis entered it as answered by the cache, and fell silent
        # before it said so, whereupon the call went to a pod. Its end takes the row's place, whichever comes first.
        insert = new.on_conflict_do_update(
            index_elements=[ledger.c.id],
            set_={column.name: new.excluded[column.name] for column in ledger.columns if not column.primary_key},
            where=(ledger.c.cache == "hit") & (new.excluded.cache != "hit"),
        )
        self._insert = insert.execution_options(preserve_rowcount=True)

    def close(self) -> None:
        """Closes the pooled connections."""
        self._engine.dispose()

    def enter(self, rows: Sequence[Row]) -> int:
        """Enters those that are not there yet, all in one transaction; how many these were.

        Raises:
            BooksClosed: SQL can't be reached or written now.
            BadRow: a row is wrong; none was entered.
        """

        def insert(connection: Connection) -> int:
            return max(0, connection.execute(self._insert, list(rows)).rowcount)

        try:
            return self._run(insert)
        except (DataError, IntegrityError) as error:
            raise BadRow(str(error.orig)) from error
        except (OverflowError, TypeError, ValueError) as error:  # of a driver that does not even try
            raise BadRow(str(error)) from error
        except SQLAlchemyError as error:
            raise BooksClosed(str(error.orig if isinstance(error, DBAPIError) else error)) from error

    def known(self, identities: Sequence[str]) -> dict[str, Row]:
        """The rows of these calls, by call id.

        Raises:
            BooksClosed: SQL can't be reached now.
        """
        return {row["id"]: row for row in self.rows(select(ledger).where(ledger.c.id.in_(identities)))}

    def of_request(self, request_id: str, *, tenant: str | None, limit: int) -> list[Row]:
        """The rows of a client's request id, which may repeat, the newest first; of one tenant where one is named.

        Raises:
            BooksClosed: SQL can't be reached now.
        """
        if "\x00" in request_id:
            return []
        query = select(ledger).where(ledger.c.request_id == request_id).order_by(ledger.c.started_ms.desc())
        return self.rows((query.where(ledger.c.tenant == tenant) if tenant is not None else query).limit(limit))

    def rows(self, query: Select[Any]) -> list[Row]:
        """What a question gives.

        Raises:
            BooksClosed: SQL can't be reached now, or takes too long.
        """

        def ask(connection: Connection) -> list[Row]:
            if not self._sqlite:
                connection.execute(text(f"SET LOCAL statement_timeout = {LONG_QUESTION * 1000}"))
            return [dict(row) for row in connection.execute(query).mappings()]

        try:
            return self._run(ask)
        except SQLAlchemyError as error:
            raise BooksClosed(str(error)) from error

    def forget(self, before_ms: int, most: int) -> int:
        """Deletes up to `most` of the rows of calls that arrived before this Unix time; how many these were.

        Raises:
            BooksClosed: SQL can't be reached or written now.
        """
        old = select(ledger.c.id).where(ledger.c.started_ms < before_ms).limit(most)
        try:
            return self._run(lambda connection: connection.execute(delete(ledger).where(ledger.c.id.in_(old))).rowcount)
        except SQLAlchemyError as error:
            raise BooksClosed(str(error)) from error

    def _run(self, work: Callable[[Connection], Result]) -> Result:
        def run() -> Result:
            with self._engine.begin() as connection:
                return work(connection)

        # psycopg waits in gevent's loop, SQLite in C.
        return off_loop(run) if self._sqlite else run()


def open_books(url: str, *, wait: float = WAIT) -> Books:
    """The ledger in the accounts' database; closed until these have been opened, which brings the schema along."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        if address.database and not address.database.startswith((":memory:", "file:")):
            # The file is for the accounts to make, which let nobody else read it.
            address = address.set(
                database=f"file:{quote(address.database)}", query={**address.query, "mode": "rw", "uri": "true"}
            )
        # No pool: its locks are gevent's, and the connections are used by threads that gevent does not know.
        return Books(create_engine(address, poolclass=NullPool, connect_args={"timeout": wait}))
    return Books(make_engine(url, pool_size=POOL, wait=wait))
