"""The gateway's accounts on a real SQLite file, and an application with their routes behind the shared edge."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from flask import Flask, jsonify, request
from flask.testing import FlaskClient

from services.cache.connection import Connection
from services.cache.throttle import Throttle
from services.common.settings import GatewaySettings
from services.gateway.accounts import PLATFORM, Accounts, open_accounts
from services.gateway.identify import Identifier
from services.gateway.routes import admin, login
from services.web.edge import create_app

KEY_SECRET = "k" * 40
JWT_SECRET = "j" * 40
PASSWORD = "correct horse battery"


class Clock:
    """A clock that stands still until it is moved; starts at the real time, which signed tokens carry."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class CountingHasher(PasswordHasher):
    """The real argon2 at its cheapest, which notes each hash that it compared a password with."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.compared: list[str] = []

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:
        self.compared.append(str(hash))
        return super().verify(hash, password)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state" / "forebay.db"


@pytest.fixture
def settings(database: Path) -> GatewaySettings:
    return GatewaySettings(
        jwt_secret=JWT_SECRET,
        key_secret=KEY_SECRET,
        database_url=f"sqlite:///{database}",
        identity_ttl=5,
        requests_per_minute=600,
        tokens_per_minute=200_000,
    )


@pytest.fixture
def hasher() -> CountingHasher:
    return CountingHasher()


@pytest.fixture
def accounts(settings: GatewaySettings, hasher: CountingHasher) -> Iterator[Accounts]:
    """Two tenants, `platform` and `demo`, with nobody in them."""
    opened = open_accounts(settings.database_url, pool_size=5, key_secret=KEY_SECRET, hasher=hasher)
    opened.tenants.create(PLATFORM)
    opened.tenants.create("demo")
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())


@pytest.fixture
def identifier(accounts: Accounts, settings: GatewaySettings, clock: Clock) -> Identifier:
    return Identifier(accounts, settings, clock=clock, monotonic=clock)


@pytest.fixture
def throttle(clock: Clock) -> Throttle:
    """Counts in this process' memory, as there is no Redis behind it."""
    return Throttle(Connection("redis://127.0.0.1:1/0"), clock=clock)


@pytest.fixture
def app(accounts: Accounts, settings: GatewaySettings, identifier: Identifier, throttle: Throttle) -> Flask:
    """Log-in and admin routes, and `/whoami`, which answers with the principal."""
    made = create_app("gateway-test", max_body_bytes=65_536)
    login.register(made, accounts, identifier, settings, throttle=throttle)
    made.register_blueprint(admin.blueprint(accounts, identifier))

    @made.get("/whoami")
    def whoami() -> Any:
        principal = identifier.identify(request.headers.get("Authorization"))
        models = None if principal.models is None else sorted(principal.models)
        return jsonify({**asdict(principal), "scopes": sorted(principal.scopes), "models": models})

    return made


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def operator(accounts: Accounts) -> dict[str, str]:
    """Headers of an admin of the platform."""
    _, plain = accounts.keys.create(PLATFORM, "operator", scopes=frozenset({"inference", "admin"}))
    return {"Authorization": f"Bearer {plain}"}


@pytest.fixture
def demo_admin(accounts: Accounts) -> dict[str, str]:
    """Headers of an admin of the tenant `demo` alone."""
    _, plain = accounts.keys.create("demo", "admin", scopes=frozenset({"inference", "admin"}))
    return {"Authorization": f"Bearer {plain}"}
