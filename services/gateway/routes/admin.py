"""`/admin`: tenants, users and keys, for credentials with the scope `admin`.

Admins of the tenant `platform` administer every tenant. Those of another see and change that tenant alone: an id
from outside answers as if it did not exist. Every change is one line of the log `forebay.audit`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from flask import Blueprint, Response, g, jsonify, request
from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.common.errors import Conflict, Forbidden, InvalidRequest
from services.common.wire import parse_json, validate
from services.gateway.accounts import PLATFORM, Accounts, Key, Role, Scope, Tenant, User
from services.gateway.identify import Identifier, Principal, require

audit = logging.getLogger("forebay.audit")

Row = TypeVar("Row", Tenant, User, Key)

END_OF_TIME = 253_402_300_799
"""The last second of the year 9999."""


class AdminModel(BaseModel):
    """Strict types, and no unknown fields: a misspelt limit must not silently be no limit."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class ListQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenant: str | None = None
    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, pattern=r"^[0-9a-f]{28}\z")


class NewTenant(AdminModel):
    name: str


class NewUser(AdminModel):
    tenant: str | None = None
    username: str
    password: str | None = Field(None, min_length=12, max_length=1024)
    role: Role = "member"


class UserChange(AdminModel):
    disabled: bool | None = None
    password: str | None = Field(None, min_length=12, max_length=1024)


class NewKey(AdminModel):
    tenant: str | None = None
    name: str = Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+\z")
    scopes: list[Scope] = ["inference"]
    requests_per_minute: int | None = Field(None, ge=1, le=10**9)
    tokens_per_minute: int | None = Field(None, ge=1, le=10**12)
    expires_at: int | None = Field(None, le=END_OF_TIME)

    @field_validator("scopes")
    @classmethod
    def _has_inference(cls, value: list[Scope]) -> list[Scope]:
        if "inference" not in value:
            raise ValueError("must contain 'inference'; 'admin' may be added to it")
        return value

    @field_validator("expires_at")
    @classmethod
    def _in_future(cls, value: int | None) -> int | None:
        if value is not None and value <= time.time():
            raise ValueError("must be a Unix time in the future, in seconds")
        return value


def blueprint(accounts: Accounts, identifier: Identifier) -> Blueprint:
    """The admin routes over these accounts."""
    routes = Blueprint("admin", __name__, url_prefix="/admin")

    @routes.before_request
    def _only_admins() -> None:
        g.principal = identifier.identify(request.headers.get("Authorization"))
        require(g.principal, "admin")

    @routes.get("/tenants")
    def list_tenants() -> Response:
        query = _query()
        only = _filter(g.principal, query.tenant)
        rows = accounts.tenants(only=only, after=query.after, limit=query.limit + 1)
        return _list(rows, query.limit, tenant_body)

    @routes.post("/tenants")
    def create_tenant() -> tuple[Response, int]:
        if g.principal.tenant != PLATFORM:
            raise Forbidden(f"Only admins of the tenant '{PLATFORM}' may create tenants.")
        tenant = accounts.create_tenant(validate(NewTenant, _body()).name)
        _record("tenant.create", tenant.id, tenant)
        return jsonify(tenant_body(tenant)), 201

    @routes.get("/users")
    def list_users() -> Response:
        query = _query()
        rows = accounts.users(tenant=_known(accounts, query), after=query.after, limit=query.limit + 1)
        return _list(rows, query.limit, user_body)

    @routes.post("/users")
    def create_user() -> tuple[Response, int]:
        given = validate(NewUser, _body())
        password = given.password or secrets.token_urlsafe(18)
        user = accounts.create_user(_target(g.principal, given.tenant), given.username, password, given.role)
        _record("user.create", user.id, user.tenant)
        shown = {} if given.password else {"password": password}
        return _secret({**user_body(user), **shown}), 201

    @routes.patch("/users/<identity>")
    def change_user(identity: str) -> Response:
        change = validate(UserChange, _body())
        if change.disabled is None and change.password is None:
            raise InvalidRequest("Name what to change: 'disabled', 'password' or both.")
        if change.disabled and g.principal.subject == f"user:{identity}":
            raise Conflict("You can't disable yourself.", param="disabled")
        user = accounts.update_user(
            identity, tenant=_reach(g.principal), disabled=change.disabled, password=change.password
        )
        identifier.forget()
        if change.disabled is not None:
            _record("user.disable" if change.disabled else "user.enable", user.id, user.tenant)
        if change.password is not None:
            _record("user.reset_password", user.id, user.tenant)
        return jsonify(user_body(user))

    @routes.get("/keys")
    def list_keys() -> Response:
        query = _query()
        rows = accounts.keys(tenant=_known(accounts, query), after=query.after, limit=query.limit + 1)
        return _list(rows, query.limit, key_body)

    @routes.post("/keys")
    def create_key() -> tuple[Response, int]:
        given = validate(NewKey, _body())
        if g.principal.tenant != PLATFORM and (given.requests_per_minute or given.tokens_per_minute):
            raise Forbidden(f"Only admins of the tenant '{PLATFORM}' may set limits.")
        key, plain = accounts.create_key(
            _target(g.principal, given.tenant),
            given.name,
            scopes=frozenset(given.scopes),
            requests_per_minute=given.requests_per_minute,
            tokens_per_minute=given.tokens_per_minute,
            expires_at=given.expires_at,
        )
        _record("key.create", key.id, key.tenant)
        return _secret({**key_body(key), "key": plain}), 201

    @routes.delete("/keys/<identity>")
    def revoke_key(identity: str) -> Response:
        key = accounts.revoke_key(identity, tenant=_reach(g.principal))
        identifier.forget()
        _record("key.revoke", key.id, key.tenant)
        return jsonify(key_body(key))

    return routes


def tenant_body(tenant: Tenant) -> dict[str, Any]:
    return {"id": tenant.id, "object": "tenant", "name": tenant.name, "created_at": tenant.created_at}


def user_body(user: User) -> dict[str, Any]:
    return {
        "id": user.id,
        "object": "user",
        "tenant": user.tenant.name,
        "username": user.username,
        "role": user.role,
        "disabled": user.disabled,
        "created_at": user.created_at,
    }


def key_body(key: Key) -> dict[str, Any]:
    """The key as lists show it: of the plain key only the public prefix, by which its owner can recognize it."""
    return {
        "id": key.id,
        "object": "key",
        "tenant": key.tenant.name,
        "name": key.name,
        "prefix": f"fb-{key.prefix}",
        "scopes": sorted(key.scopes),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }


def _body() -> dict[str, Any]:
    return parse_json(request.get_data())


def _query() -> ListQuery:
    return validate(ListQuery, request.args.to_dict())


def _reach(principal: Principal) -> str | None:
    """The one tenant that the admin administers, None for all of them."""
    return None if principal.tenant == PLATFORM else principal.tenant


def _target(principal: Principal, named: str | None) -> str:
    """The tenant that a new user or key belongs to: the one named, else the admin's own."""
    tenant = named or principal.tenant
    if _reach(principal) not in (None, tenant):
        raise Forbidden(f"You administer the tenant '{principal.tenant}' only.", param="tenant")
    return tenant


def _filter(principal: Principal, named: str | None) -> str | None:
    """The tenant that a list is confined to, None for every tenant."""
    return _reach(principal) if named is None else _target(principal, named)


def _known(accounts: Accounts, query: ListQuery) -> str | None:
    """As `_filter`, where a tenant that does not exist is an error and not an empty list."""
    name = _filter(g.principal, query.tenant)
    return None if name is None else accounts.tenant(name).name


def _list(rows: Sequence[Row], limit: int, body: Callable[[Row], dict[str, Any]]) -> Response:
    """One page, as OpenAI's lists are: `after` its last id comes the next. One row more than the page was read."""
    return jsonify(object="list", data=[body(row) for row in rows[:limit]], has_more=len(rows) > limit)


def _secret(body: dict[str, Any]) -> Response:
    response = jsonify(body)
    response.headers["Cache-Control"] = "no-store"
    return response


def _record(action: str, target: str, tenant: Tenant) -> None:
    audit.info(
        "admin action",
        extra={"actor": g.principal.subject, "action": action, "target": target, "tenant": tenant.name},
    )
