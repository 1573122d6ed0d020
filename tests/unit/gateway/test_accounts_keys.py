"""API keys: how one is found, what is kept of it, how it is changed, rotated and revoked."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from services.common.errors import Conflict, NotFound
from services.common.settings import GatewaySettings
from services.gateway.accounts import Accounts, open_accounts
from services.gateway.accounts.credentials import KEY, key_prefix, mint_key
from tests.unit.gateway.conftest import CountingHasher


def test_a_key_is_found_by_its_plain_text(accounts: Accounts) -> None:
    key, plain = accounts.keys.create("demo", "ci")
    found = accounts.keys.find(plain)
    assert found is not None
    assert (found.id, found.name, found.tenant.name) == (key.id, "ci", "demo")


def test_a_key_has_a_public_prefix_and_32_random_bytes(accounts: Accounts) -> None:
    _, plain = accounts.keys.create("demo", "ci")
    assert KEY.fullmatch(plain)
    assert len(plain.split("-", 2)[2]) == 43  # 32 bytes in base64


def test_a_key_with_the_right_prefix_and_a_wrong_secret_is_not_found(accounts: Accounts) -> None:
    _, plain = accounts.keys.create("demo", "ci")
    wrong = plain[:12] + mint_key()[12:]
    assert key_prefix(wrong) == key_prefix(plain)
    assert accounts.keys.find(wrong) is None


def test_two_keys_that_share_a_prefix_are_told_apart(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = [mint_key()[:12] + mint_key()[12:] for _ in range(2)]
    twins[1] = twins[0][:12] + twins[1][12:]
    monkeypatch.setattr("services.gateway.accounts.keys.mint_key", twins.pop)
    made = [accounts.keys.create("demo", name) for name in ("one", "two")]
    assert [accounts.keys.find(plain).name for _, plain in made] == ["one", "two"]


def test_a_key_is_looked_up_by_its_public_prefix_alone(accounts: Accounts) -> None:
    """So what the database does, and how long it takes, can't depend on the secret part."""
    _, plain = accounts.keys.create("demo", "ci")
    asked: list[Any] = []
    event.listen(accounts.engine, "before_cursor_execute", lambda *call: asked.append(call[3]))
    wrong = plain[:12] + mint_key()[12:]
    for text_of_key in (plain, wrong):
        accounts.keys.find(text_of_key)
    assert [list(dict(given).values() if isinstance(given, dict) else given) for given in asked] == [[plain[3:11]]] * 2


def test_another_key_secret_makes_every_key_unknown(accounts: Accounts, settings: GatewaySettings) -> None:
    _, plain = accounts.keys.create("demo", "ci")
    other = open_accounts(settings.database_url, pool_size=1, key_secret="x" * 40, hasher=CountingHasher())
    assert other.keys.find(plain) is None
    other.close()


@given(st.text())
def test_no_text_but_a_key_has_a_prefix(words: str) -> None:
    assert (key_prefix(words) is None) == (KEY.fullmatch(words) is None)


def test_a_revoked_key_stays_revoked_since_the_first_time(accounts: Accounts) -> None:
    key, _ = accounts.keys.create("demo", "ci")
    first = accounts.keys.revoke(key.id).revoked_at
    assert first is not None
    assert accounts.keys.revoke(key.id).revoked_at == first


def test_a_key_of_another_tenant_can_not_be_revoked(accounts: Accounts) -> None:
    key, _ = accounts.keys.create("demo", "ci")
    with pytest.raises(NotFound):
        accounts.keys.revoke(key.id, tenant="platform")


def test_a_key_that_was_made_elsewhere_is_taken_once(accounts: Accounts) -> None:
    plain = mint_key()
    accounts.tenants.create("acme")
    assert accounts.keys.create("acme", "given", plain=plain)[1] == plain
    assert accounts.keys.find(plain).name == "given"
    with pytest.raises(Conflict):
        accounts.keys.create("acme", "again", plain=plain)


def test_a_key_is_changed_in_its_tenant_alone(accounts: Accounts) -> None:
    key, _ = accounts.keys.create("demo", "ci", expires_at=2_000_000_000)
    changes = {"name": "nightly", "scopes": frozenset({"inference", "admin"}), "concurrent": 2, "expires_at": None}
    with pytest.raises(NotFound):
        accounts.keys.update(key.id, tenant="platform", **changes)
    changed = accounts.keys.update(key.id, tenant="demo", **changes)
    assert (changed.name, changed.scopes, changed.limits.concurrent) == ("nightly", {"inference", "admin"}, 2)
    assert accounts.keys.get(key.id).expires_at is None


def test_a_rotated_key_has_the_rights_of_the_old_one(accounts: Accounts) -> None:
    rights = {"tokens_per_day": 5, "models": ["a"], "scopes": frozenset({"inference", "admin"})}
    old, old_plain = accounts.keys.create("demo", "ci", expires_at=4_000_000_000, **rights)
    before = int(time.time())
    new, plain = accounts.keys.rotate(old.id, tenant="demo", overlap=60)
    assert plain != old_plain
    assert accounts.keys.find(plain).id == new.id
    assert (new.rotated_from, new.name, new.tenant.name, new.expires_at) == (old.id, "ci", "demo", 4_000_000_000)
    assert (new.limits, new.models, new.scopes) == (old.limits, ["a"], old.scopes)
    assert before + 60 <= accounts.keys.find(old_plain).expires_at <= before + 62


def test_a_rotation_shortens_an_expiry_and_never_lengthens_it(accounts: Accounts) -> None:
    soon = int(time.time()) + 10
    key, _ = accounts.keys.create("demo", "ci", expires_at=soon)
    accounts.keys.rotate(key.id, overlap=3600)
    assert accounts.keys.get(key.id).expires_at == soon


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_key_that_is_not_good_any_more_is_not_rotated(accounts: Accounts, end: str) -> None:
    key, _ = accounts.keys.create("demo", "ci", expires_at=1 if end == "expired" else None)
    if end == "revoked":
        accounts.keys.revoke(key.id)
    with pytest.raises(Conflict):
        accounts.keys.rotate(key.id, overlap=60)
