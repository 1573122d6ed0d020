"""For how long a check of a key is trusted, and for how long more while the database is gone."""

from __future__ import annotations

import time
from typing import Any

import pytest

from services.common.errors import AccountsUnavailable, NotAuthenticated, TokenExpired
from services.common.settings import GatewaySettings
from services.gateway import identify
from services.gateway.accounts import Accounts
from services.gateway.accounts.credentials import mint_key
from services.gateway.identify import Identifier
from tests.unit.gateway.conftest import Clock


@pytest.fixture
def key(accounts: Accounts) -> str:
    return accounts.keys.create("demo", "ci")[1]


def reads(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by one with each look for a key in the database."""
    seen: list[str] = []
    find = accounts.keys.find
    monkeypatch.setattr(accounts.keys, "find", lambda plain: seen.append(plain) or find(plain))
    return seen


def test_a_checked_key_is_trusted_without_a_look_into_the_database(
    identifier: Identifier, accounts: Accounts, key: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = reads(accounts, monkeypatch)
    for _ in range(10):
        identifier.identify(f"Bearer {key}")
        clock.advance(0.4)
    assert len(seen) == 1


def test_who_is_trusted_is_told_without_a_check_and_nobody_else(identifier: Identifier, key: str, clock: Clock) -> None:
    header = f"Bearer {key}"
    assert identifier.trusted(header) is None
    principal = identifier.identify(header)
    clock.advance(4.9)
    assert identifier.trusted(header) == principal
    assert [identifier.trusted(one) for one in (None, key, f"{header}x")] == [None] * 3
    clock.advance(0.1)
    assert identifier.trusted(header) is None
    identifier.identify(header)
    identifier.forget()
    assert identifier.trusted(header) is None


def test_a_revocation_elsewhere_takes_effect_within_the_ttl(
    identifier: Identifier, accounts: Accounts, key: str, clock: Clock
) -> None:
    identifier.identify(f"Bearer {key}")
    accounts.keys.revoke(accounts.keys.find(key).id)
    clock.advance(4.9)
    identifier.identify(f"Bearer {key}")
    clock.advance(0.1)
    with pytest.raises(NotAuthenticated, match="revoked"):
        identifier.identify(f"Bearer {key}")


def test_trust_is_counted_from_the_check_and_not_from_the_last_use(
    identifier: Identifier, accounts: Accounts, key: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = reads(accounts, monkeypatch)
    for _ in range(11):
        identifier.identify(f"Bearer {key}")
        clock.advance(1)
    assert len(seen) == 3


def test_a_key_does_not_outlive_its_expiry_by_being_trusted(
    identifier: Identifier, accounts: Accounts, clock: Clock
) -> None:
    _, plain = accounts.keys.create("demo", "ci", expires_at=int(clock()) + 2)
    identifier.identify(f"Bearer {plain}")
    clock.advance(2)
    with pytest.raises(TokenExpired):
        identifier.identify(f"Bearer {plain}")


def test_a_clock_that_is_set_back_does_not_lengthen_the_trust(
    accounts: Accounts, settings: GatewaySettings, key: str
) -> None:
    wall, steady = Clock(time.time()), Clock(1000)
    identifier = Identifier(accounts, settings, clock=wall, monotonic=steady)
    identifier.identify(f"Bearer {key}")
    accounts.keys.revoke(accounts.keys.find(key).id)
    wall.advance(-3600)
    steady.advance(5)
    with pytest.raises(NotAuthenticated):
        identifier.identify(f"Bearer {key}")


def test_failures_are_not_remembered(
    identifier: Identifier, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = mint_key()
    with pytest.raises(NotAuthenticated):
        identifier.identify(f"Bearer {soon}")
    monkeypatch.setattr("services.gateway.accounts.keys.mint_key", lambda: soon)
    accounts.keys.create("demo", "ci")
    assert identifier.identify(f"Bearer {soon}").tenant == "demo"


def test_what_was_read_before_a_revocation_is_not_remembered_after_it(
    identifier: Identifier, accounts: Accounts, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = accounts.keys.find

    def revoked_meanwhile(plain: str) -> Any:
        found = find(plain)
        accounts.keys.revoke(found.id)
        identifier.forget()
        return found

    monkeypatch.setattr(accounts.keys, "find", revoked_meanwhile)
    identifier.identify(f"Bearer {key}")
    monkeypatch.undo()
    with pytest.raises(NotAuthenticated):
        identifier.identify(f"Bearer {key}")


def test_memory_is_bounded_and_the_oldest_check_goes_first(
    identifier: Identifier, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identify, "MAX_TRUSTED", 3)
    keys = [accounts.keys.create("demo", "ci")[1] for _ in range(4)]
    seen = reads(accounts, monkeypatch)
    for plain in (*keys, *keys[1:], keys[0]):
        identifier.identify(f"Bearer {plain}")
    assert seen == [*keys, keys[0]]


def test_a_key_that_was_checked_again_is_no_longer_the_oldest(
    identifier: Identifier, accounts: Accounts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identify, "MAX_TRUSTED", 3)
    again, once, *later = (accounts.keys.create("demo", "ci")[1] for _ in range(4))
    identifier.identify(f"Bearer {again}")
    clock.advance(3)
    identifier.identify(f"Bearer {once}")
    clock.advance(3)
    for plain in (again, *later):
        identifier.identify(f"Bearer {plain}")
    seen = reads(accounts, monkeypatch)
    for plain in (again, once):
        identifier.identify(f"Bearer {plain}")
    assert seen == [once]


def test_memory_holds_hashes_that_are_the_processes_own(
    identifier: Identifier, accounts: Accounts, settings: GatewaySettings, key: str
) -> None:
    another = Identifier(accounts, settings)
    for one in (identifier, another):
        one.identify(f"Bearer {key}")
        assert key not in repr(vars(one))
    assert identifier._trusted.keys().isdisjoint(another._trusted.keys())


def without_a_database(monkeypatch: pytest.MonkeyPatch, accounts: Accounts) -> None:
    """A stand-in for what test_sql_gone.py does with a real server, where a clock can be moved."""

    def gone(_plain: str) -> None:
        raise AccountsUnavailable

    monkeypatch.setattr(accounts.keys, "find", gone)


def test_a_checked_key_holds_for_the_grace_and_no_longer(
    identifier: Identifier, accounts: Accounts, key: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    identifier.identify(f"Bearer {key}")
    without_a_database(monkeypatch, accounts)
    clock.advance(599)
    assert identifier.identify(f"Bearer {key}").tenant == "demo"
    clock.advance(1)
    with pytest.raises(AccountsUnavailable):
        identifier.identify(f"Bearer {key}")


def test_the_grace_does_not_outlast_a_keys_expiry(
    identifier: Identifier, accounts: Accounts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plain = accounts.keys.create("demo", "ci", expires_at=int(clock()) + 60)
    identifier.identify(f"Bearer {plain}")
    without_a_database(monkeypatch, accounts)
    clock.advance(61)
    with pytest.raises(AccountsUnavailable):
        identifier.identify(f"Bearer {plain}")


def test_a_key_that_was_found_revoked_has_no_grace(
    identifier: Identifier, accounts: Accounts, key: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    identifier.identify(f"Bearer {key}")
    accounts.keys.revoke(accounts.keys.find(key).id)
    clock.advance(5)
    with pytest.raises(NotAuthenticated):
        identifier.identify(f"Bearer {key}")
    without_a_database(monkeypatch, accounts)
    with pytest.raises(AccountsUnavailable):
        identifier.identify(f"Bearer {key}")


def test_one_subject_can_be_forgotten_alone(
    identifier: Identifier, accounts: Accounts, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, other = accounts.keys.create("demo", "other")
    for plain in (key, other):
        identifier.identify(f"Bearer {plain}")
    identifier.forget(f"key:{accounts.keys.find(key).id}")
    seen = reads(accounts, monkeypatch)
    for plain in (key, other):
        identifier.identify(f"Bearer {plain}")
    assert seen == [key]
