"""What tenants, users and keys have in common as rows: how one is put in, found, and listed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.common.errors import Conflict, NotFound
from services.gateway.accounts.sessions import Sessions
from services.gateway.accounts.tables import ID, Key, Tenant, User

TENANT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)

Row = TypeVar("Row", Tenant, User, Key)
Owned = TypeVar("Owned", User, Key)


def insert(sessions: Sessions, row: Row, conflict: str, *, param: str | None = None) -> Row:
    """The row, once it is in the database.

    Raises:
        Conflict: there is one like it, which `conflict` says.
    """
    try:
        with sessions.write() as session:
            session.add(row)
            session.flush()
            session.refresh(row)
    except IntegrityError:
        raise Conflict(conflict, param=param) from None
    return row


def page(sessions: Sessions, kind: type[Row], *wanted: Any, after: str | None, limit: int) -> Sequence[Row]:
    """Those that are as `wanted`, in the order they were made, behind the id `after`."""
    query = select(kind).where(*wanted).order_by(kind.id).limit(limit)
    if after is not None:
        query = query.where(kind.id > after)
    with sessions.read() as session:
        return session.scalars(query).all()


def page_of(
    sessions: Sessions, kind: type[Owned], tenant: str | None, *, after: str | None, limit: int
) -> Sequence[Owned]:
    """The same of one tenant's, or of all tenants'."""
    wanted = [kind.tenant.has(name=tenant)] if tenant else []
    return page(sessions, kind, *wanted, after=after, limit=limit)


def by_id(session: Session, kind: type[Row], identity: str) -> Row | None:
    """The row of that id."""
    # Only what can be an id goes to the database: PostgreSQL fails on a NUL in a string.
    return session.get(kind, identity) if ID.fullmatch(identity) else None


def owned(session: Session, kind: type[Owned], identity: str, tenant: str | None) -> Owned:
    """The row of that id.

    Raises:
        NotFound: no such row in the tenant.
    """
    row = by_id(session, kind, identity)
    if row is None or (tenant is not None and row.tenant.name != tenant):
        raise NotFound(f"There is no such {kind.__name__.lower()}.")
    return row


def tenant_named(session: Session, name: str) -> Tenant:
    """The tenant of that name.

    Raises:
        NotFound: there is none.
    """
    found = session.scalar(select(Tenant).where(Tenant.name == name)) if TENANT_NAME.fullmatch(name) else None
    if found is None:
        raise NotFound("There is no such tenant.", param="tenant")
    return found
