"""Budgets that outlive Redis: what the ledger knows of the day and the month is added once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.cache.connection import Connection
from services.cache.ledger import Entry
from services.cache.quotas import Quotas
from services.cache.windows import Ask, Limits, Reservation, Used
from services.common.ids import new_id
from services.gateway.accounts import open_accounts
from services.gateway.budgets import SETTLES, Budgets
from services.gateway.identify import Principal
from services.gateway.ledger import Books, open_books
from services.gateway.ledger.table import row_of
from tests.valkey import run_valkey

LIMITS = Limits(tokens_per_day=1000, tokens_per_month=1000, micros_per_month=1000)
ACME = Principal("acme", "t1", "key:1", frozenset(), None, LIMITS, LIMITS, "salt")
LATER = 10**9


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    url = f"sqlite:///{tmp_path / 'forebay.db'}"
    open_accounts(url, pool_size=1, key_secret="k" * 40).close()  # makes the tables
    opened = open_books(url)
    yield opened
    opened.close()


@pytest.fixture
def connection() -> Iterator[Connection]:
    with run_valkey() as server:
        opened = Connection(server.url)
        yield opened
        opened.close()


@pytest.fixture
def quotas(connection: Connection) -> Quotas:
    return Quotas(connection)


@pytest.fixture
def budgets(books: Books, quotas: Quotas) -> Budgets:
    return Budgets(books, quotas)


def enter(books: Books, at: datetime, *, subject: str = "key:1", tokens: int = 100) -> None:
    """A call of the past, of a micro-unit a token."""
    started = int(at.timestamp() * 1000)
    half = tokens // 2
    entry = Entry(
        new_id(), "req", "acme", "t1", subject, "m", "chat", "ok", half, 0, tokens - half, started, cost_micros=tokens
    )
    books.enter([row_of(entry)])


def reserve(quotas: Quotas, tokens: int = 1) -> Reservation:
    ask = Ask(ACME.subject, ACME.limits, tokens, tokens, tenant_id=ACME.tenant_id, tenant_limits=ACME.tenant_limits)
    return quotas.reserve(ask)


def counted(connection: Connection, account: str) -> tuple[int, int, int]:
    """Tokens of the day and the month, and micro-units of the month."""
    names = ["day_tokens", "month_tokens", "month_micros"]
    day, month, micros = connection.reach(lambda redis: redis.hmget(f"forebay:budget:{account}", names))
    return int(day), int(month), int(micros)


def month_start() -> datetime:
    return datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def test_what_was_used_before_redis_counted_is_added(
    books: Books, quotas: Quotas, budgets: Budgets, connection: Connection
) -> None:
    now = datetime.now(UTC)
    enter(books, now, tokens=100)
    enter(books, now, tokens=30, subject="key:2")
    enter(books, month_start(), tokens=7)
    enter(books, datetime.fromtimestamp(month_start().timestamp() - 1, UTC), tokens=500)
    time.sleep(0.002)  # for a call of a later millisecond
    first = reserve(quotas)
    quotas.settle(first, Used(2, 2))
    budgets.note(ACME, first)
    budgets.restore_due(time.monotonic())
    assert counted(connection, "key:1") == (2, 2, 2), "not before the ledger has had time"
    budgets.restore_due(time.monotonic() + SETTLES)
    today = 7 if month_start().day == now.day else 0
    assert counted(connection, "key:1") == (102 + today, 109, 109)
    assert counted(connection, "tenant:t1") == (132 + today, 139, 139)


def test_it_is_added_once_whoever_tries(books: Books, quotas: Quotas, budgets: Budgets, connection: Connection) -> None:
    enter(books, datetime.now(UTC), tokens=100)
    time.sleep(0.002)
    first, second = reserve(quotas), reserve(quotas)
    assert first.unknown_past == second.unknown_past != ()
    another = Budgets(books, quotas)
    for one in (budgets, another):
        one.note(ACME, first)
        one.note(ACME, second)
        one.restore_due(LATER)
    assert counted(connection, "key:1")[1] == 102
    assert reserve(quotas).unknown_past == ()


def test_a_budget_that_was_used_up_before_is_used_up_after_redis_has_lost_it(
    books: Books, quotas: Quotas, budgets: Budgets, connection: Connection
) -> None:
    enter(books, datetime.now(UTC), tokens=1000)
    connection.reach(lambda redis: redis.flushall())
    time.sleep(0.002)
    budgets.note(ACME, reserve(quotas))
    budgets.restore_due(LATER)
    refused = reserve(quotas).refused
    assert refused is not None
    assert refused.limit.startswith("tokens_per")


def test_a_redis_that_begins_anew_meanwhile_is_left_to_the_next(
    books: Books, quotas: Quotas, budgets: Budgets, connection: Connection
) -> None:
    budgets.note(ACME, reserve(quotas))
    connection.reach(lambda redis: redis.flushall())
    time.sleep(0.002)
    again = reserve(quotas)
    budgets.restore_due(LATER)
    assert reserve(quotas).unknown_past == again.unknown_past != ()


def test_an_account_without_budgets_has_no_past(quotas: Quotas) -> None:
    assert quotas.reserve(Ask("key:9", Limits(10, 10), 1, tenant_id="t9")).unknown_past == ()
