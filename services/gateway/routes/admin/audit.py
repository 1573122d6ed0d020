"""`GET /admin/audit`: what admins did, newest first. Nobody can change it here."""

from __future__ import annotations

from typing import Any, Literal

from flask import Blueprint, Response
from pydantic import Field

from services.gateway.routes.admin.desk import (
    Desk,
    Id,
    Shown,
    TenantPage,
    UnixTime,
    owner,
    page,
    reach,
    read_query,
)


class AuditPage(TenantPage):
    """Entries older than the one with the id `after`."""

    tenant: str | None = Field(None, pattern=r"^[a-z0-9-]{1,63}\z", description="Only what happened to this tenant.")
    actor: str | None = Field(
        None, pattern=r"^[a-z]+:[!-~]{1,120}\z", description="`key:<id>`, `user:<id>` or `oidc:…`."
    )
    action: str | None = Field(None, pattern=r"^[a-z]+\.[a-z]+\z", description="`noun.verb`, such as `key.create`.")
    since: int | None = Field(None, ge=0, le=2**62, description="Unix seconds, inclusive.")
    until: int | None = Field(None, ge=0, le=2**62, description="Unix seconds, exclusive.")


class AuditShown(Shown):
    id: Id
    object: Literal["audit_entry"] = "audit_entry"
    created_at: UnixTime
    actor: str
    tenant: str
    action: str
    target: str = Field(description="The id of what it was done to.")
    detail: dict[str, Any] = Field(description="What was given; of a change, old and new value by field. No secrets.")
    request_id: str | None


def register(routes: Blueprint, desk: Desk) -> None:
    @routes.get("/audit")
    def list_audit() -> Response:
        query = read_query(AuditPage)
        # Not looked up: the log speaks of tenants that are gone, too.
        tenant = reach() if query.tenant is None else owner(query.tenant)
        rows = desk.accounts.audit.entries(
            tenant=tenant,
            actor=query.actor,
            action=query.action,
            since=query.since,
            until=query.until,
            after=query.after,
            limit=query.limit + 1,
        )
        return page(rows, query.limit, AuditShown)
