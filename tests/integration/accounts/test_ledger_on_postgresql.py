"""What `tests/unit/gateway/test_ledger.py` says of SQLite holds on PostgreSQL, where a lock stands for its absence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from services.gateway.accounts import Accounts
from services.gateway.ledger import Books, open_books
from tests.integration.accounts import again
from tests.unit.gateway import test_ledger
from tests.unit.gateway.test_ledger import redis, valkey, writing  # noqa: F401

globals().update(again.unit_tests(test_ledger))


@pytest.fixture
def books(accounts: Accounts) -> Iterator[Books]:
    """The ledger in an empty database; what is locked it waits for as briefly as can be."""
    opened = open_books(accounts.engine.url, wait=0.2)
    yield opened
    opened.close()


@pytest.fixture
def lock(accounts: Accounts) -> Iterator[Callable[[], None]]:
    """Takes the whole table; called again it gives it back."""
    with accounts.engine.connect() as holder:

        def turn() -> None:
            if holder.in_transaction():
                holder.commit()
            else:
                holder.execute(text("LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE"))

        yield turn
