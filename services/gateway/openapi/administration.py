"""The table of routes: `/admin`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from services.gateway.openapi.operation import CSV, Good, Operation
from services.gateway.routes.admin import audit, keys, models, tenants, usage, users
from services.gateway.routes.admin.desk import Shown, TenantPage


def _reads(
    path: str, summary: str, schema: type[Shown], query: type[BaseModel] | None = None, text: str | None = None
) -> Operation:
    good = Good("A page of the list" if query else "As it is", schema, text=text, many=query is not None)
    errors = (404,)
    return Operation(
        "GET", f"/admin{path}", summary, "Administration", (good,), query=query, scope="admin", errors=errors
    )


def _writes(method: Any, path: str, summary: str, good: Good, body: type[BaseModel] | None = None) -> Operation:
    return Operation(
        method,
        f"/admin{path}",
        summary,
        "Administration",
        (good,),
        body=body,
        body_needed=body is not keys.Rotation,
        scope="admin",
        headers=("Idempotency-Key",),
        errors=(404, 409),
    )


def _made(schema: type[Shown]) -> Good:
    return Good("It is made", schema, status=201)


def _changed(schema: type[Shown]) -> Good:
    return Good("As it is now", schema)


ADMINISTRATION = (
    _reads("/tenants", "List tenants", tenants.TenantShown, TenantPage),
    _writes("POST", "/tenants", "Make a tenant", _made(tenants.TenantShown), tenants.NewTenant),
    _reads("/tenants/{name}", "Show a tenant", tenants.TenantShown),
    _writes("PATCH", "/tenants/{name}", "Change a tenant", _changed(tenants.TenantShown), tenants.TenantChange),
    _writes(
        "DELETE", "/tenants/{name}", "Delete a disabled tenant with its users and keys", _changed(tenants.TenantShown)
    ),
    _reads("/users", "List users", users.UserShown, TenantPage),
    _writes("POST", "/users", "Make a user", _made(users.UserCreated), users.NewUser),
    _reads("/users/{identity}", "Show a user", users.UserShown),
    _writes("PATCH", "/users/{identity}", "Change a user", _changed(users.UserShown), users.UserChange),
    _writes("DELETE", "/users/{identity}", "Delete a user", _changed(users.UserShown)),
    _reads("/keys", "List keys", keys.KeyShown, TenantPage),
    _writes("POST", "/keys", "Make a key", _made(keys.KeyCreated), keys.NewKey),
    _reads("/keys/{identity}", "Show a key", keys.KeyShown),
    _writes("PATCH", "/keys/{identity}", "Change a key", _changed(keys.KeyShown), keys.KeyChange),
    _writes("DELETE", "/keys/{identity}", "Revoke a key for good", _changed(keys.KeyShown)),
    _writes(
        "POST",
        "/keys/{identity}/rotate",
        "Make a key in the place of this one, which stays good for a while",
        _made(keys.KeyCreated),
        keys.Rotation,
    ),
    Operation(
        "GET",
        "/admin/models",
        "List the models as this gateway sees them, with their pods",
        "Administration",
        (Good("All of them", models.ModelShown, many=True),),
        scope="admin",
    ),
    _reads("/models/{name}", "Show a model and its pods", models.ModelShown),
    _reads("/usage", "Sum up what was used, and what it cost", usage.UsageShown, usage.UsageQuery, CSV),
    Operation(
        "GET",
        "/admin/requests/{request_id}",
        "Show the calls of a request id, newest first",
        "Administration",
        (Good("The calls", usage.CallShown, many=True),),
        scope="admin",
        errors=(404, 503),
    ),
    _reads("/audit", "Read what admins did, newest first", audit.AuditShown, audit.AuditPage),
)
