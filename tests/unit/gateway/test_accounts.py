"""What is true of all accounts: ids, pages, what is never kept, and a database that several processes open at once."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import Timer

import pytest
from sqlalchemy import create_engine, text

from services.common.errors import NotFound
from services.gateway.accounts import Accounts, open_accounts
from services.gateway.accounts.credentials import key_prefix
from services.gateway.accounts.database import _turn_to_wal
from tests.unit.gateway.conftest import KEY_SECRET, PASSWORD, CountingHasher


def everything_on_disk(database: Path) -> bytes:
    return b"".join(file.read_bytes() for file in database.parent.iterdir())


def test_no_key_is_in_the_database_file(accounts: Accounts, database: Path) -> None:
    _, plain = accounts.keys.create("demo", "ci")
    content = everything_on_disk(database)
    assert key_prefix(plain).encode() in content
    assert plain.split("-", 2)[2].encode() not in content


def test_no_password_is_in_the_database_file(accounts: Accounts, database: Path) -> None:
    accounts.users.create("demo", "ada", PASSWORD)
    content = everything_on_disk(database)
    assert b"$argon2id$" in content
    assert PASSWORD.encode() not in content


@pytest.mark.parametrize("identity", ["", "x", "0" * 28, "\0" * 28, "é" * 28])
def test_an_id_that_nobody_has_is_not_found(accounts: Accounts, identity: str) -> None:
    assert accounts.users.by_id(identity) is None
    with pytest.raises(NotFound):
        accounts.keys.revoke(identity)


def test_of_two_that_revoke_a_token_one_is_first(accounts: Accounts) -> None:
    expires = int(time.time()) + 60
    assert accounts.revoked.add("token", expires) is True
    assert accounts.revoked.add("token", expires) is False
    assert accounts.revoked.has("token")


def test_revocations_of_expired_tokens_are_swept_away(accounts: Accounts) -> None:
    accounts.revoked.add("old", int(time.time()) - 1)
    accounts.revoked.add("new", int(time.time()) + 60)
    assert not accounts.revoked.has("old")
    assert accounts.revoked.has("new")


def test_a_list_is_paged_in_the_order_of_creation(accounts: Accounts) -> None:
    made = [accounts.keys.create("demo", f"key {number}")[0].id for number in range(5)]
    first = accounts.keys.page(limit=3)
    second = accounts.keys.page(limit=3, after=first[-1].id)
    assert [key.id for key in (*first, *second)] == made


def test_sqlite_runs_in_wal_mode_with_foreign_keys(accounts: Accounts, database: Path) -> None:
    with accounts.sessions.read() as session:
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
        assert session.scalar(text("PRAGMA busy_timeout")) == 5000
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"


def test_the_database_is_its_owners_alone(accounts: Accounts, database: Path) -> None:
    modes = {file.stat().st_mode & 0o777 for file in (database, *database.parent.glob("*.db-*"))}
    assert modes == {0o600}
    assert database.parent.stat().st_mode & 0o777 == 0o700


def _open_and_write(url: str, barrier: Barrier, number: int) -> None:
    barrier.wait()
    accounts = open_accounts(url, pool_size=2, key_secret=KEY_SECRET, hasher=CountingHasher())
    accounts.tenants.create(f"tenant-{number}")
    accounts.close()


def test_several_processes_may_create_the_tables_at_once(database: Path) -> None:
    url = f"sqlite:///{database}"
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(6)
    processes = [spawn.Process(target=_open_and_write, args=(url, barrier, number)) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM tenants")) == 6
    engine.dispose()


def test_the_step_to_wal_mode_waits_for_whoever_holds_the_file(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/new.db", connect_args={"timeout": 0})
    holder = sqlite3.connect(tmp_path / "new.db", check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    release = Timer(0.1, holder.rollback)
    release.start()
    _turn_to_wal(engine)
    release.join()
    holder.close()
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
    engine.dispose()


def test_the_driver_for_postgresql_is_installed() -> None:
    """A connection is only made at the first query, so no server is needed to see it."""
    assert create_engine("postgresql+psycopg://user:password@nowhere/forebay").driver == "psycopg"
