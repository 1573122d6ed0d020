"""The audit log and the kept answers, in one transaction with what they tell of."""

from __future__ import annotations

import time

import pytest

from services.common.errors import Conflict
from services.gateway.accounts import Accounts


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
