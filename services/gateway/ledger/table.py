"""The table: a row a call, with the fields of `cache.ledger.Entry`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Float, Index, Integer, String, Table

from services.cache.ledger import Entry
from services.gateway.accounts.tables import Base

DAY_MS = 86_400_000

ledger = Table(
    "ledger",
    Base.metadata,
    Column("id", String(64), primary_key=True),
    Column("request_id", String(128), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("tenant_id", String(64), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("model", String(255), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("day", Integer, nullable=False),  # whole days from 1970-01-01 to the arrival, in UTC
    Column("duration_ms", BigInteger, nullable=False),
    Column("ttft_ms", BigInteger),
    Column("compute_seconds", Float),
    Column("energy_joules", Float),
    Column("upstream", String(255), nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
    Column("saved_micros", BigInteger, nullable=False),
    Column("cache", String(16), nullable=False),
    Column("retries", Integer, nullable=False),
    Column("resumes", Integer, nullable=False),
    Column("route", String(512), nullable=False),
    Index("ix_ledger_tenant_started_ms", "tenant", "started_ms"),
    Index("ix_ledger_subject_started_ms", "subject", "started_ms"),
    Index("ix_ledger_model_started_ms", "model", "started_ms"),
    Index("ix_ledger_started_ms", "started_ms"),
    Index("ix_ledger_request_id", "request_id"),
)

_LENGTHS = {
    column.name: column.type.length or 0
    for column in ledger.columns
    if isinstance(column.type, String) and not column.primary_key
}
_WHOLE = [column.name for column in ledger.columns if isinstance(column.type, Integer) and not column.nullable]


def row_of(entry: Entry) -> dict[str, Any]:
    """An entry as the table takes it. What a client chose freely (its request id, a model's name) is cut to fit.

    Raises:
        ValueError, TypeError: it is no entry of a call.
    """
    row = dict(vars(entry))
    for name, length in _LENGTHS.items():
        text = row[name]
        if len(text) > length or "\x00" in text:  # PostgreSQL takes no NUL in a text
            row[name] = text.replace("\x00", "")[:length]
    row["day"] = row["started_ms"] // DAY_MS
    for name in _WHOLE:
        row[name] = int(row[name])
    if not 0 < len(row["id"]) <= 64:
        raise ValueError("an entry has an id of 1 to 64 characters")
    return row
