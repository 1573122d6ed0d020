"""What the accounts keep, what they never keep, and that several processes may open them at once."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from argon2 import PasswordHasher, extract_parameters
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, event, text

from services.cache.windows import Limits
from services.common.errors import Conflict, InvalidRequest, NotFound
from services.common.settings import GatewaySettings
from services.gateway.accounts import Accounts, open_accounts
from services.gateway.accounts.credentials import KEY, key_prefix, mint_key
from services.gateway.accounts.database import _turn_to_wal
from tests.unit.gateway.conftest import KEY_SECRET, PASSWORD, CountingHasher


def everything_on_disk(database: Path) -> bytes:
    return b"".join(file.read_bytes() for file in database.parent.iterdir())


def test_a_key_is_found_by_its_plain_text(accounts: Accounts) -> None:
    key, plain = accounts.keys.create("demo", "ci")
    found = accounts.keys.find(plain)
    assert found is not None
    assert (found.id, found.name, found.tenant.name) == (key.id, "ci", "demo")


def test_a_key_has_a_public_prefix_and_32_random_bytes(accounts: Accounts) -> None:
    _, plain = accounts.keys.create("demo", "ci")
    assert KEY.fullmatch(plain)
    assert len(plain.split("-", 2)[2]) == 43  # 32 bytes in base64


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


@pytest.mark.parametrize("identity", ["", "x", "0" * 28, "\0" * 28, "é" * 28])
def test_an_id_that_nobody_has_is_not_found(accounts: Accounts, identity: str) -> None:
    assert accounts.users.by_id(identity) is None
    with pytest.raises(NotFound):
        accounts.keys.revoke(identity)


def test_a_tenant_name_is_given_once(accounts: Accounts) -> None:
    with pytest.raises(Conflict):
        accounts.tenants.create("demo")


@pytest.mark.parametrize("name", ["", "Demo", "-a", "a-", "a b", "é", "a" * 64, "a\n", "other"])
def test_a_tenant_name_is_fit_to_label_metrics(accounts: Accounts, name: str) -> None:
    with pytest.raises(InvalidRequest):
        accounts.tenants.create(name)


def test_a_user_name_is_given_once_over_all_tenants(accounts: Accounts) -> None:
    accounts.users.create("demo", "ada", PASSWORD)
    with pytest.raises(Conflict):
        accounts.users.create("platform", "ada", PASSWORD)


def test_a_user_needs_a_tenant_that_exists(accounts: Accounts) -> None:
    with pytest.raises(NotFound):
        accounts.users.create("nowhere", "ada", PASSWORD)


def test_the_right_password_gives_the_user(accounts: Accounts) -> None:
    made = accounts.users.create("demo", "ada", PASSWORD)
    found = accounts.users.verify("ada", PASSWORD)
    assert found is not None
    assert found.id == made.id


def test_a_wrong_password_and_a_disabled_user_give_nobody(accounts: Accounts) -> None:
    user = accounts.users.create("demo", "ada", PASSWORD)
    assert accounts.users.verify("ada", "wrong") is None
    accounts.users.update(user.id, disabled=True)
    assert accounts.users.verify("ada", PASSWORD) is None


@pytest.mark.parametrize("username", ["nobody", "NOT A NAME", "\0"])
def test_an_unknown_user_costs_as_much_as_a_wrong_password(
    accounts: Accounts, hasher: CountingHasher, username: str
) -> None:
    accounts.users.create("demo", "ada", PASSWORD)
    accounts.users.verify("ada", "wrong")
    accounts.users.verify(username, "wrong")
    known, unknown = hasher.compared
    assert extract_parameters(unknown) == extract_parameters(known)


def test_a_log_in_renews_a_hash_of_older_parameters(accounts: Accounts, settings: GatewaySettings) -> None:
    accounts.users.create("demo", "ada", PASSWORD)
    dearer = PasswordHasher(time_cost=2, memory_cost=8, parallelism=1)
    later = open_accounts(settings.database_url, pool_size=1, key_secret=KEY_SECRET, hasher=dearer)
    assert later.users.verify("ada", PASSWORD)
    assert extract_parameters(later.users.by_name("ada").password_hash).time_cost == 2
    assert later.users.verify("ada", PASSWORD)
    later.close()


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


def test_the_cache_salt_is_the_tenants_own(accounts: Accounts) -> None:
    demo, platform = accounts.tenants.get("demo"), accounts.tenants.get("platform")
    assert accounts.cache_salt(demo) == accounts.cache_salt(accounts.tenants.get("demo"))
    assert accounts.cache_salt(demo) != accounts.cache_salt(platform)


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


UNDER_GEVENT = """
from gevent import monkey; monkey.patch_all()
import sys
import gevent
from argon2 import PasswordHasher
from services.gateway.accounts import open_accounts

slow = PasswordHasher(time_cost=20, memory_cost=19456, parallelism=1)
accounts = open_accounts(sys.argv[1], pool_size=1, key_secret="k" * 40, hasher=slow)
turns = 0
def turn():
    global turns
    while True:
        turns += 1
        gevent.sleep(0.001)
gevent.spawn(turn)
assert accounts.users.verify("nobody", "wrong") is None
print(turns)
"""


def test_under_gevent_other_greenlets_run_while_a_password_is_checked(settings: GatewaySettings) -> None:
    command = [sys.executable, "-c", UNDER_GEVENT, settings.database_url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 5


def test_the_driver_for_postgresql_is_installed() -> None:
    """A connection is only made at the first query, so no server is needed to see it."""
    assert create_engine("postgresql+psycopg://user:password@nowhere/forebay").driver == "psycopg"


def test_a_key_that_was_made_elsewhere_is_taken_once(accounts: Accounts) -> None:
    plain = mint_key()
    accounts.tenants.create("acme")
    assert accounts.keys.create("acme", "given", plain=plain)[1] == plain
    assert accounts.keys.find(plain).name == "given"
    with pytest.raises(Conflict):
        accounts.keys.create("acme", "again", plain=plain)


# Changes


def test_a_tenants_limits_are_set_and_taken_away(accounts: Accounts) -> None:
    accounts.tenants.update("demo", tokens_per_day=5, micros_per_month=7, models=["b", "a"], weight=2.0)
    tenant = accounts.tenants.update("demo", tokens_per_day=None, disabled=True)
    assert tenant.limits == Limits(micros_per_month=7)
    assert (tenant.allowed_models, tenant.weight, tenant.disabled) == ({"a", "b"}, 2.0, True)
    assert accounts.tenants.get("demo").limits == tenant.limits


def test_a_misspelt_limit_is_no_limit_that_is_set(accounts: Accounts) -> None:
    with pytest.raises(TypeError, match="tokens_per_hour"):
        accounts.tenants.update("demo", tokens_per_hour=5)


def test_a_tenant_goes_with_its_users_and_keys(accounts: Accounts) -> None:
    accounts.users.create("demo", "ada", PASSWORD)
    _, plain = accounts.keys.create("demo", "ci")
    _, other = accounts.keys.create("platform", "ci")
    old = accounts.tenants.delete("demo")
    assert accounts.keys.find(plain) is None
    assert accounts.users.by_name("ada") is None
    assert accounts.keys.find(other) is not None
    assert accounts.tenants.create("demo").id != old.id


def test_the_platform_can_be_neither_disabled_nor_deleted(accounts: Accounts) -> None:
    with pytest.raises(Conflict):
        accounts.tenants.update("platform", disabled=True)
    with pytest.raises(Conflict):
        accounts.tenants.delete("platform")


def test_a_users_tokens_end_with_a_new_role_and_not_with_a_new_limit(accounts: Accounts) -> None:
    user = accounts.users.create("demo", "ada", PASSWORD)
    assert accounts.users.update(user.id, tokens_per_day=5).token_epoch == user.token_epoch
    promoted = accounts.users.update(user.id, role="admin")
    assert promoted.token_epoch == user.token_epoch + 1
    assert "admin" in promoted.scopes


def test_a_deleted_user_is_gone(accounts: Accounts) -> None:
    user = accounts.users.create("demo", "ada", PASSWORD)
    with pytest.raises(NotFound):
        accounts.users.delete(user.id, tenant="platform")
    accounts.users.delete(user.id, tenant="demo")
    assert accounts.users.verify("ada", PASSWORD) is None


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


# Audit


def test_the_audit_log_is_read_newest_first_and_in_pages(accounts: Accounts) -> None:
    for number in range(5):
        accounts.audit.record(actor="key:1", tenant="demo", action="key.create", target=f"{number}", request_id="r")
    first = accounts.audit.entries(limit=2)
    second = accounts.audit.entries(limit=3, after=first[-1].id)
    assert [entry.target for entry in (*first, *second)] == ["4", "3", "2", "1", "0"]


def test_the_audit_log_is_read_by_who_whose_and_when(accounts: Accounts) -> None:
    entry = accounts.audit.record(
        actor="user:1", tenant="demo", action="key.create", target="k", detail={"limits": {"tokens_per_day": 5}}
    )
    accounts.audit.record(actor="user:2", tenant="platform", action="tenant.create", target="t")
    now = entry.created_at
    for found in (
        {"tenant": "demo"},
        {"actor": "user:1"},
        {"action": "key.create"},
        {"tenant": "demo", "since": now, "until": now + 60},
    ):
        assert [one.detail for one in accounts.audit.entries(**found)] == [{"limits": {"tokens_per_day": 5}}]
    for nothing in ({"tenant": "demo", "actor": "user:2"}, {"since": now + 60}, {"until": now}):
        assert accounts.audit.entries(**nothing) == []


def test_an_effect_and_its_entry_are_kept_together_or_not_at_all(accounts: Accounts) -> None:
    def fail_after_both() -> None:
        with accounts.transaction():
            accounts.keys.create("demo", "ci")
            accounts.audit.record(actor="key:1", tenant="demo", action="key.create", target="k")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_both()
    assert accounts.keys.page() == []
    assert accounts.audit.entries() == []
    with accounts.transaction():
        key, _ = accounts.keys.create("demo", "ci")
        accounts.audit.record(actor="key:1", tenant="demo", action="key.create", target=key.id)
    assert [entry.target for entry in accounts.audit.entries()] == [accounts.keys.page()[0].id]


def test_an_answer_is_kept_once_and_until_it_expires(accounts: Accounts) -> None:
    now = int(time.time())
    kept = {"fingerprint": "f", "status": 201, "body": "{}"}
    accounts.answers.keep("a", **kept, expires_at=now + 60)
    with pytest.raises(Conflict):
        accounts.answers.keep("a", **kept, expires_at=now + 60)
    assert accounts.answers.find("a").status == 201
    accounts.answers.keep("old", **kept, expires_at=now)
    assert accounts.answers.find("old") is None
    accounts.answers.keep("old", **kept, expires_at=now + 60)
    assert accounts.answers.find("b") is None
