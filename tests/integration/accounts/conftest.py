"""A PostgreSQL server for the session, and the fixtures of the unit tests on a database of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.common.settings import GatewaySettings
from tests.postgres import Postgres, run_postgres, server_programs
from tests.unit.gateway.conftest import (  # noqa: F401
    JWT_SECRET,
    KEY_SECRET,
    accounts,
    app,
    client,
    clock,
    demo_admin,
    hasher,
    identifier,
    operator,
    throttle,
)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if server_programs() is None:
        pytest.skip("not installed: postgresql")
    with run_postgres() as server:
        yield server


@pytest.fixture
def settings(postgres: Postgres) -> GatewaySettings:
    """As in the unit tests, with an empty database of PostgreSQL."""
    return GatewaySettings(
        jwt_secret=JWT_SECRET,
        key_secret=KEY_SECRET,
        database_url=postgres.new_database(),
        identity_ttl=5,
        requests_per_minute=600,
        tokens_per_minute=200_000,
    )
