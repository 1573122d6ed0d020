"""The schema's way: what migrations make is what the code declares, on both databases, from whatever there was."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect, text

import services.gateway
from services.cache.windows import Limits
from services.gateway.accounts import open_accounts
from services.gateway.accounts.migrate import MIGRATIONS
from services.gateway.accounts.tables import Base
from tests.postgres import Postgres
from tests.unit.gateway.conftest import JWT_SECRET, KEY_SECRET, CountingHasher

BEFORE = """
CREATE TABLE tenants (
    name VARCHAR(63) NOT NULL, id VARCHAR(28) NOT NULL, created_at BIGINT NOT NULL,
    CONSTRAINT pk_tenants PRIMARY KEY (id), CONSTRAINT uq_tenants_name UNIQUE (name));
CREATE TABLE revoked_tokens (
    id VARCHAR(64) NOT NULL, expires_at BIGINT NOT NULL, created_at BIGINT NOT NULL,
    CONSTRAINT pk_revoked_tokens PRIMARY KEY (id));
CREATE INDEX ix_revoked_tokens_expires_at ON revoked_tokens (expires_at);
CREATE TABLE users (
    tenant_id VARCHAR(28) NOT NULL, username VARCHAR(128) NOT NULL, password_hash VARCHAR(255) NOT NULL,
    role VARCHAR(16) NOT NULL, disabled BOOLEAN NOT NULL, token_epoch INTEGER NOT NULL, id VARCHAR(28) NOT NULL,
    created_at BIGINT NOT NULL,
    CONSTRAINT pk_users PRIMARY KEY (id), CONSTRAINT fk_users_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT uq_users_username UNIQUE (username));
CREATE INDEX ix_users_tenant_id ON users (tenant_id);
CREATE TABLE keys (
    tenant_id VARCHAR(28) NOT NULL, name VARCHAR(128) NOT NULL, prefix VARCHAR(16) NOT NULL, hash VARCHAR(64) NOT NULL,
    scope VARCHAR(255) NOT NULL, requests_per_minute BIGINT, tokens_per_minute BIGINT, expires_at BIGINT,
    revoked_at BIGINT, id VARCHAR(28) NOT NULL, created_at BIGINT NOT NULL,
    CONSTRAINT pk_keys PRIMARY KEY (id), CONSTRAINT fk_keys_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id),
    CONSTRAINT uq_keys_hash UNIQUE (hash));
CREATE INDEX ix_keys_tenant_id ON keys (tenant_id);
CREATE INDEX ix_keys_prefix ON keys (prefix);
INSERT INTO tenants VALUES ('acme', '0000000000000000000000000001', 1);
"""
"""The database as it was made before there were migrations, by version 0.1 on SQLite and PostgreSQL alike."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/forebay.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


def opened(url: str) -> Engine:
    """The engine of a database that the accounts were opened on."""
    accounts = open_accounts(url, pool_size=1, key_secret=KEY_SECRET, hasher=CountingHasher())
    accounts.close()
    return create_engine(url)


def declare_every_table() -> None:
    for module in pkgutil.walk_packages(services.gateway.__path__, "services.gateway."):
        if module.name.rpartition(".")[2] in ("table", "tables"):
            import_module(module.name)


def head() -> str | None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return ScriptDirectory.from_config(config).get_current_head()


def test_the_migrations_make_the_tables_that_the_code_declares(url: str) -> None:
    declare_every_table()
    engine = opened(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert MigrationContext.configure(connection).get_current_revision() == head()
    engine.dispose()


def test_a_database_of_the_time_before_is_brought_along_with_what_is_in_it(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in filter(str.strip, BEFORE.split(";")):
            connection.execute(text(statement))
    engine.dispose()
    accounts = open_accounts(url, pool_size=1, key_secret=KEY_SECRET, hasher=CountingHasher())
    tenant = accounts.tenants.get("acme")
    assert (tenant.id, tenant.limits, tenant.weight, tenant.disabled) == (f"{1:028}", Limits(), 1.0, False)
    assert accounts.keys.find(accounts.keys.create("acme", "ci")[1]) is not None
    with accounts.engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == head()
    accounts.close()


def test_a_migrated_database_is_left_as_it_is(url: str) -> None:
    opened(url).dispose()
    engine = opened(url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM alembic_version")) == 1
    engine.dispose()


def test_a_database_of_a_newer_version_is_used_as_it_is(url: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = opened(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    accounts = open_accounts(url, pool_size=1, key_secret=KEY_SECRET, hasher=CountingHasher())
    accounts.tenants.create("acme")
    accounts.close()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "later"
    engine.dispose()
    assert [record.revision for record in caplog.records if record.levelno == logging.WARNING] == ["later"]


def test_a_migration_that_fails_leaves_nothing_behind(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE audit_entries (id INTEGER)"))
    with pytest.raises(Exception, match="audit_entries"):
        open_accounts(url, pool_size=1, key_secret=KEY_SECRET, hasher=CountingHasher())
    assert inspect(engine).get_table_names() == ["audit_entries"]
    engine.dispose()


def _open_and_write(url: str, barrier: Barrier, number: int) -> None:
    barrier.wait()
    accounts = open_accounts(url, pool_size=2, key_secret=KEY_SECRET, hasher=CountingHasher())
    accounts.tenants.create(f"tenant-{number}")
    accounts.close()


def test_several_processes_may_migrate_at_once(url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(4)
    processes = [spawn.Process(target=_open_and_write, args=(url, barrier, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM tenants")) == 4
    engine.dispose()


def test_the_command_migrates_the_database_of_the_settings(url: str) -> None:
    environment = {**os.environ, "FOREBAY_DATABASE_URL": url, "FOREBAY_JWT_SECRET": JWT_SECRET}
    command = [sys.executable, "-m", "services.gateway.accounts"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.split(":")[1].strip()) == (2, "FOREBAY_KEY_SECRET")
    subprocess.run(command, env={**environment, "FOREBAY_KEY_SECRET": KEY_SECRET}, check=True)
    engine = create_engine(url)
    assert "tenants" in inspect(engine).get_table_names()
    engine.dispose()
