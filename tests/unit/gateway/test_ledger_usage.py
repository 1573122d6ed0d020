"""Who used how much of what: the sums over the ledger, by an HTTP client."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from services.cache.ledger import Entry
from services.gateway.accounts import Accounts
from services.gateway.identify import Identifier
from services.gateway.ledger import Books, open_books
from services.gateway.ledger.table import DAY_MS, row_of
from services.gateway.routes.admin.usage import register_own

DAY = 20_781
"""2026-11-24."""
ENTRY = Entry(
    "call", "req", "demo", "t1", "key:" + "1" * 28, "m", "chat", "ok", 10, 4, 5, DAY * DAY_MS, 30, 10, 0.5, 2.0,
    "http://p", 7, 1, "miss",
)  # fmt: skip
OTHER = "key:" + "2" * 28


@pytest.fixture
def books(accounts: Accounts) -> Iterator[Books]:
    """Four calls: two of one key, one of another key a day later, and one of another tenant, of unknown energy."""
    opened = open_books(accounts.engine.url)
    entries = [
        replace(ENTRY, id="a"),
        replace(ENTRY, id="b", model="n"),
        replace(ENTRY, id="c", subject=OTHER, started_ms=(DAY + 1) * DAY_MS, request_id="twice"),
        replace(ENTRY, id="d", tenant="acme", subject="user:u", energy_joules=None, request_id="twice"),
    ]
    opened.enter([row_of(entry) for entry in entries])
    yield opened
    opened.close()


@pytest.fixture
def asked(books: Books, app: Flask, identifier: Identifier) -> FlaskClient:
    register_own(app, identifier, books)
    return app.test_client()


def usage(client: FlaskClient, headers: dict[str, str], **query: Any) -> list[dict[str, Any]]:
    answer = client.get("/admin/usage", query_string=query, headers=headers)
    assert answer.status_code == 200, answer.json
    return list(answer.json["data"])


def picked(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


def test_without_a_group_there_is_one_sum(asked: FlaskClient, operator: dict[str, str]) -> None:
    [row] = usage(asked, operator)
    row.pop("id")
    assert row == {
        "object": "usage",
        "tenant": None,
        "key": None,
        "model": None,
        "day": None,
        "requests": 4,
        "prompt_tokens": 40,
        "cached_tokens": 16,
        "completion_tokens": 20,
        "gpu_seconds": 2.0,
        "energy_joules": 6.0,
        "cost_micros": 28,
        "saved_micros": 4,
    }


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ("tenant", [("acme", 1), ("demo", 3)]),
        ("key", [("key:" + "1" * 28, 2), (OTHER, 1), ("user:u", 1)]),
        ("model", [("m", 3), ("n", 1)]),
        ("day", [("2026-11-24", 3), ("2026-11-25", 1)]),
    ],
)
def test_sums_go_by_the_group_that_is_named(
    asked: FlaskClient, operator: dict[str, str], group_by: str, expected: list[tuple[Any, int]]
) -> None:
    assert picked(usage(asked, operator, group_by=group_by), group_by, "requests") == expected


def test_several_groups_are_ordered_as_they_are_named(asked: FlaskClient, operator: dict[str, str]) -> None:
    rows = usage(asked, operator, group_by="model,tenant")
    assert picked(rows, "model", "tenant", "requests") == [("m", "acme", 1), ("m", "demo", 2), ("n", "demo", 1)]


@pytest.mark.parametrize(
    ("query", "requests"),
    [
        ({"tenant": "acme"}, 1),
        ({"key": "1" * 28}, 2),
        ({"key": "user:u"}, 1),
        ({"model": "n"}, 1),
        ({"start": "2026-11-25"}, 1),
        ({"end": "2026-11-25"}, 3),
        ({"start": str(DAY * 86_400 + 1)}, 1),
        ({"start": "2026-11-24", "end": "2026-11-25", "tenant": "demo"}, 2),
        ({"tenant": "nobody"}, 0),
    ],
)
def test_what_is_summed_can_be_narrowed(
    asked: FlaskClient, operator: dict[str, str], query: dict[str, str], requests: int
) -> None:
    assert picked(usage(asked, operator, **query), "requests") == [(requests,)]


def test_energy_that_no_machine_tells_is_null(asked: FlaskClient, operator: dict[str, str]) -> None:
    assert picked(usage(asked, operator, tenant="acme"), "energy_joules") == [(None,)]


def test_the_pages_of_a_list_together_are_the_list(asked: FlaskClient, operator: dict[str, str]) -> None:
    query: dict[str, Any] = {"group_by": "tenant,key,model,day"}
    whole = usage(asked, operator, **query)
    assert len(whole) == 4
    pages, more = [], True
    while more:
        answer = asked.get("/admin/usage", query_string=query | {"limit": 1}, headers=operator).json
        pages += answer["data"]
        more, query["after"] = answer["has_more"], pages[-1]["id"]
    assert pages == whole


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"group_by": "outcome"}, "group_by"),
        ({"group_by": "day,day"}, "group_by"),
        ({"start": "yesterday"}, "start"),
        ({"end": "2026-13-01"}, "end"),
        ({"format": "xml"}, "format"),
        ({"limit": "0"}, "limit"),
        ({"after": "!!!"}, "after"),
        ({"after": "WyJhIl0"}, "after"),
        ({"after": "WzFd", "group_by": "model"}, "after"),
        ({"after": "WyJhXHUwMDAwIl0", "group_by": "model"}, "after"),
        ({"model": "a\x00"}, "model"),
        ({"key": "one of ours"}, "key"),
        ({"tenants": "demo"}, "tenants"),
    ],
)
def test_a_query_that_is_wrong_is_refused_by_its_field(
    asked: FlaskClient, operator: dict[str, str], query: dict[str, str], param: str
) -> None:
    answer = asked.get("/admin/usage", query_string=query, headers=operator)
    assert (answer.status_code, answer.json["error"]["param"]) == (400, param)


def test_a_tenants_admin_sees_the_tenant_alone(asked: FlaskClient, demo_admin: dict[str, str]) -> None:
    assert picked(usage(asked, demo_admin, group_by="tenant"), "tenant", "requests") == [("demo", 3)]
    assert picked(usage(asked, demo_admin, key="user:u"), "requests") == [(0,)]
    assert asked.get("/admin/usage?tenant=acme", headers=demo_admin).status_code == 403


def test_a_member_sees_no_sums_but_the_own_ones(asked: FlaskClient, accounts: Accounts, books: Books) -> None:
    key, plain = accounts.keys.create("demo", "mine")
    books.enter([row_of(replace(ENTRY, id="mine", subject=f"key:{key.id}", completion_tokens=99))])
    headers = {"Authorization": f"Bearer {plain}"}
    assert asked.get("/admin/usage", headers=headers).status_code == 403
    own = asked.get("/v1/usage?group_by=model", headers=headers).json["data"]
    assert picked(own, "model", "requests", "completion_tokens") == [("m", 1, 99)]
    assert asked.get("/v1/usage?tenant=acme", headers=headers).status_code == 400
    assert asked.get("/v1/usage").status_code == 401


def test_a_request_id_finds_its_calls_as_far_as_the_admin_reaches(
    asked: FlaskClient, operator: dict[str, str], demo_admin: dict[str, str]
) -> None:
    rows = asked.get("/admin/requests/twice", headers=operator).json["data"]
    assert picked(rows, "id", "tenant", "outcome", "cost_micros") == [("c", "demo", "ok", 7), ("d", "acme", "ok", 7)]
    assert picked(asked.get("/admin/requests/twice", headers=demo_admin).json["data"], "id") == [("c",)]
    for nothing in ("never", "a%00b"):
        assert asked.get(f"/admin/requests/{nothing}", headers=operator).status_code == 404


def rows_of(answer: Any) -> list[list[str]]:
    return list(csv.reader(io.StringIO(answer.get_data(as_text=True))))


def test_the_same_sums_come_as_csv(asked: FlaskClient, operator: dict[str, str]) -> None:
    answer = asked.get("/admin/usage?group_by=tenant,day&format=csv&limit=1", headers=operator)
    assert answer.content_type == "text/csv; charset=utf-8"
    assert rows_of(answer) == [
        ["tenant", "day", "requests", "prompt_tokens", "cached_tokens", "completion_tokens", "gpu_seconds",
         "energy_joules", "cost_micros", "saved_micros"],
        ["acme", "2026-11-24", "1", "10", "4", "5", "0.5", "", "7", "1"],
        ["demo", "2026-11-24", "2", "20", "8", "10", "1.0", "4.0", "14", "2"],
        ["demo", "2026-11-25", "1", "10", "4", "5", "0.5", "2.0", "7", "1"],
    ]  # fmt: skip


def test_csv_goes_on_over_the_pages(
    asked: FlaskClient, operator: dict[str, str], books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.routes.admin.usage.CSV_PAGE", 10)
    books.enter([row_of(replace(ENTRY, id=f"x{number}", model=f"model-{number:03}")) for number in range(57)])
    rows = rows_of(asked.get("/admin/usage?group_by=model&format=csv", headers=operator))
    assert [row[0] for row in rows[1:]] == ["m", *(f"model-{number:03}" for number in range(57)), "n"]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_the_csv_can_be_a_formula(
    asked: FlaskClient, operator: dict[str, str], books: Books, name: str
) -> None:
    books.enter([row_of(replace(ENTRY, id="evil", model=name, tenant="evil"))])
    rows = rows_of(asked.get("/admin/usage?group_by=model&format=csv&tenant=evil", headers=operator))
    assert rows[1][0] == f"'{name}"


def test_a_closed_ledger_is_said_to_be_closed(
    asked: FlaskClient, operator: dict[str, str], books: Books, accounts: Accounts
) -> None:
    with accounts.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE ledger")
    for path in ("/admin/usage", "/admin/requests/twice", "/admin/usage?format=csv", "/v1/usage"):
        answer = asked.get(path, headers=operator)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
