"""`/admin/tenants`: the customers of the service, and what each may use."""

from __future__ import annotations

from typing import Literal

from flask import Blueprint, Response
from pydantic import Field

from services.common.errors import Conflict, NotFound
from services.gateway.accounts import PLATFORM
from services.gateway.routes.admin.desk import (
    Desk,
    GivenRights,
    Id,
    ShownRights,
    TenantPage,
    UnixTime,
    confined,
    page,
    platform_only,
    reach,
    read_body,
    read_changes,
    read_query,
)
from services.gateway.routes.admin.writes import EVERYBODY, Written, differences, write

TENANTS_OWN = {"share_cache"}
"""What the admins of a tenant may change of it themselves."""


class NewTenant(GivenRights):
    name: str = Field(description="1 to 63 lower-case letters, digits and inner hyphens.")
    weight: float = Field(1.0, gt=0, le=1000, description="Share of busy pods beside other tenants.")
    share_cache: bool = Field(False, description="Share cached answers with the other tenants that do.")


class TenantChange(GivenRights):
    weight: float | None = Field(None, gt=0, le=1000)
    share_cache: bool | None = None
    disabled: bool | None = Field(None, description="Refuse all its keys and users.")


class TenantShown(ShownRights):
    id: Id
    object: Literal["tenant"] = "tenant"
    name: str
    weight: float
    share_cache: bool
    disabled: bool
    created_at: UnixTime


def register(routes: Blueprint, desk: Desk) -> None:
    accounts = desk.accounts

    @routes.get("/tenants")
    def list_tenants() -> Response:
        query = read_query(TenantPage)
        only = reach() if query.tenant is None else confined(desk, query.tenant)
        return page(
            accounts.tenants.page(only=only, after=query.after, limit=query.limit + 1), query.limit, TenantShown
        )

    @routes.post("/tenants")
    def create_tenant() -> Response:
        platform_only("create tenants")
        given = read_body(NewTenant).model_dump(exclude_unset=True)

        def perform() -> Written:
            if accounts.audit.entries(tenant=given["name"], action="tenant.delete", limit=1):
                raise Conflict(
                    "There was a tenant of this name, which is in the ledger and the audit log for good.", param="name"
                )
            tenant = accounts.tenants.create(**given)
            return Written("tenant.create", tenant.id, tenant.name, TenantShown.of(tenant), 201, detail=given)

        return write(desk, perform)

    @routes.get("/tenants/<name>")
    def get_tenant(name: str) -> tuple[dict[str, object], int]:
        return TenantShown.of(accounts.tenants.get(_within_reach(name))), 200

    @routes.patch("/tenants/<name>")
    def change_tenant(name: str) -> Response:
        _within_reach(name)
        changes = read_changes(TenantChange)
        for field in changes:
            if field not in TENANTS_OWN:
                platform_only(f"set '{field}' of a tenant", param=field)

        def perform() -> Written:
            before = TenantShown.of(accounts.tenants.get(name))
            tenant = accounts.tenants.update(name, **changes)
            after = TenantShown.of(tenant)
            detail = differences(before, after)
            return Written("tenant.update", tenant.id, tenant.name, after, detail=detail, forget=EVERYBODY)

        return write(desk, perform)

    @routes.delete("/tenants/<name>")
    def delete_tenant(name: str) -> Response:
        _within_reach(name)
        platform_only("delete tenants")

        def perform() -> Written:
            tenant = accounts.tenants.get(name)
            if not tenant.disabled and name != PLATFORM:
                raise Conflict("Disable the tenant first: its users and keys are deleted with it, for good.")
            accounts.tenants.delete(name)
            return Written("tenant.delete", tenant.id, tenant.name, TenantShown.of(tenant), forget=EVERYBODY)

        return write(desk, perform)


def _within_reach(name: str) -> str:
    """A tenant out of reach is answered as one that does not exist."""
    if reach() not in (None, name):
        raise NotFound("There is no such tenant.", param="tenant")
    return name
