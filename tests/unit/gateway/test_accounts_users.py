"""Users: their passwords, and what ends their tokens."""

from __future__ import annotations

import subprocess
import sys

import pytest
from argon2 import PasswordHasher, extract_parameters

from services.common.errors import Conflict, NotFound
from services.common.settings import GatewaySettings
from services.gateway.accounts import Accounts, open_accounts
from tests.unit.gateway.conftest import KEY_SECRET, PASSWORD, CountingHasher


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
