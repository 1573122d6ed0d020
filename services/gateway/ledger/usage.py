"""Sums over the ledger: who used how much of what, and what it cost. Questions and tables, no HTTP."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Column, Select, func, literal, select, tuple_

from services.common.errors import InvalidRequest
from services.gateway.ledger.books import Books, Row
from services.gateway.ledger.table import ledger

Group = Literal["tenant", "key", "model", "day"]
GROUPS: dict[str, Column[Any]] = {
    "tenant": ledger.c.tenant,
    "key": ledger.c.subject,
    "model": ledger.c.model,
    "day": ledger.c.day,
}
EPOCH = date(1970, 1, 1)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a cell must not begin with, or a spreadsheet may compute it (OWASP, CSV Injection)."""


@dataclass(frozen=True)
class Question:
    """What is summed up: calls that arrived from `start_ms` on and before `end_ms`, of the tenant, subject and model
    that are named, by the groups that are named."""

    groups: tuple[Group, ...] = ()
    tenant: str | None = None
    subject: str | None = None
    model: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None


def sums(books: Books, question: Question, *, after: str | None = None, limit: int) -> list[Row]:
    """The sums of each group, in the groups' order, those behind the one of the id `after`.

    Raises:
        BooksClosed: SQL can't be reached now.
        InvalidRequest: `after` is no id of this question.
    """
    rows = books.rows(_query(question, after).limit(limit))
    return [_shown(question, row) for row in rows]


def _query(question: Question, after: str | None) -> Select[Any]:
    table = ledger.c
    columns = [GROUPS[name] for name in question.groups]
    query = select(
        *columns,
        func.count().label("requests"),
        func.sum(table.prompt_tokens).label("prompt_tokens"),
        func.sum(table.cached_tokens).label("cached_tokens"),
        func.sum(table.completion_tokens).label("completion_tokens"),
        func.sum(table.compute_seconds).label("gpu_seconds"),
        func.sum(table.energy_joules).label("energy_joules"),
        func.sum(table.cost_micros).label("cost_micros"),
        func.sum(table.saved_micros).label("saved_micros"),
    )
    wanted = {table.tenant: question.tenant, table.subject: question.subject, table.model: question.model}
    for column, value in wanted.items():
        if value is not None:
            query = query.where(column == value)
    if question.start_ms is not None:
        query = query.where(table.started_ms >= question.start_ms)
    if question.end_ms is not None:
        query = query.where(table.started_ms < question.end_ms)
    if after is not None:
        last = _read_id(question, after)
        values = [literal(value, column.type) for value, column in zip(last, columns, strict=True)]
        query = query.where(tuple_(*columns) > tuple_(*values))
    # Without a group there is one row, the whole.
    return query.group_by(*columns).order_by(*columns) if columns else query


def _shown(question: Question, row: Row) -> Row:
    group: Row = {name: row[GROUPS[name].name] for name in question.groups}
    shown: Row = {"id": _id(list(group.values())), **group}
    if "day" in shown:
        shown["day"] = (EPOCH + timedelta(days=shown["day"])).isoformat()
    for name in ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_micros", "saved_micros"):
        shown[name] = int(row[name] or 0)  # PostgreSQL sums whole numbers as decimals
    shown["gpu_seconds"] = round(row["gpu_seconds"] or 0.0, 6)
    shown["energy_joules"] = None if row["energy_joules"] is None else round(row["energy_joules"], 6)
    return shown


def _id(values: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def _read_id(question: Question, identity: str) -> list[Any]:
    kinds = [int if name == "day" else str for name in question.groups]
    try:
        values = json.loads(base64.urlsafe_b64decode(identity + "=" * (-len(identity) % 4)))
        if [type(value) for value in values] == kinds and kinds and not any("\x00" in str(value) for value in values):
            return list(values)
    except (ValueError, TypeError):
        pass
    raise InvalidRequest("Invalid value for 'after': it is no id of a row of this question.", param="after")


def read_time(name: str, given: str | None) -> int | None:
    """Unix milliseconds of a day (`2026-11-24`, its begin in UTC) or of Unix seconds.

    Raises:
        InvalidRequest: it is neither.
    """
    if given is None:
        return None
    try:
        if given.isdecimal() and len(given) <= 12:
            return int(given) * 1000
        day = date.fromisoformat(given)
        return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        raise InvalidRequest(f"Invalid value for '{name}': a day (YYYY-MM-DD) or Unix seconds.", param=name) from None


def read_groups(given: str) -> tuple[Group, ...]:
    """The groups of `tenant,key,model,day`, in the order in which they are named.

    Raises:
        InvalidRequest: one of them is none.
    """
    names = [name.strip() for name in given.split(",") if name.strip()]
    if len(set(names)) != len(names) or not GROUPS.keys() >= set(names):
        raise InvalidRequest(f"Invalid value for 'group_by': name each of {', '.join(GROUPS)} once.", param="group_by")
    return tuple(names)  # type: ignore[arg-type]


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    """The rows as CSV (RFC 4180), line by line, the names of the columns first. No cell can be a formula."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    for cells in (columns, *([_cell(row.get(name)) for name in columns] for row in rows)):
        writer.writerow(cells)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
