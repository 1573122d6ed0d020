"""`/admin/users`: the people of a tenant, who log in with a name and a password."""

from __future__ import annotations

import secrets
from typing import Literal

from flask import Blueprint, Response
from pydantic import AliasPath, Field

from services.common.errors import Conflict
from services.gateway.accounts import Role
from services.gateway.routes.admin.desk import (
    Desk,
    GivenInTenant,
    GivenRights,
    Id,
    ShownRights,
    UnixTime,
    limits_are_the_platforms,
    me,
    page_within_reach,
    reach,
    read_changes,
    read_new,
)
from services.gateway.routes.admin.writes import Written, differences, write


class NewUser(GivenInTenant):
    username: str = Field(description="1 to 128 of a-z 0-9 . _ @ + - that begin with a letter or digit.")
    password: str | None = Field(
        None, min_length=12, max_length=1024, description="Without one, one is made and shown in this answer only."
    )
    role: Role = "member"


class UserChange(GivenRights):
    disabled: bool | None = None
    role: Role | None = None
    password: str | None = Field(None, min_length=12, max_length=1024)


class UserShown(ShownRights):
    id: Id
    object: Literal["user"] = "user"
    tenant: str = Field(validation_alias=AliasPath("tenant", "name"))
    username: str
    role: Role
    disabled: bool
    created_at: UnixTime


class UserCreated(UserShown):
    password: str | None = Field(description="Only where the gateway has made it. It can't be shown again.")


def register(routes: Blueprint, desk: Desk) -> None:
    accounts = desk.accounts

    @routes.get("/users")
    def list_users() -> Response:
        return page_within_reach(desk, accounts.users.page, UserShown)

    @routes.post("/users")
    def create_user() -> Response:
        tenant, given = read_new(NewUser)
        asked = given.pop("password", None)
        password = asked or secrets.token_urlsafe(18)
        password_hash = accounts.users.hash_password(password)

        def perform() -> Written:
            user = accounts.users.create(tenant, password_hash=password_hash, **given)
            body = {**UserShown.of(user), "password": None if asked else password}
            return Written("user.create", user.id, tenant, body, 201, detail=given)

        return write(desk, perform)

    @routes.get("/users/<identity>")
    def get_user(identity: str) -> tuple[dict[str, object], int]:
        return UserShown.of(accounts.users.get(identity, tenant=reach())), 200

    @routes.patch("/users/<identity>")
    def change_user(identity: str) -> Response:
        changes = read_changes(UserChange)
        limits_are_the_platforms(changes)
        if changes.get("disabled") or changes.get("role") == "member":
            _not_oneself(identity, "disable or demote")
        password = changes.pop("password", None)
        if password is not None:
            changes["password_hash"] = accounts.users.hash_password(password)

        def perform() -> Written:
            before = UserShown.of(accounts.users.get(identity, tenant=reach()))
            user = accounts.users.update(identity, tenant=reach(), **changes)
            after = UserShown.of(user)
            detail = differences(before, after) | ({"password": "new"} if password else {})
            return Written("user.update", user.id, user.tenant.name, after, detail=detail, forget=f"user:{user.id}")

        return write(desk, perform)

    @routes.delete("/users/<identity>")
    def delete_user(identity: str) -> Response:
        _not_oneself(identity, "delete")

        def perform() -> Written:
            user = accounts.users.delete(identity, tenant=reach())
            shown = UserShown.of(user)
            return Written(
                "user.delete",
                user.id,
                user.tenant.name,
                shown,
                detail={"username": user.username},
                forget=f"user:{user.id}",
            )

        return write(desk, perform)


def _not_oneself(identity: str, verb: str) -> None:
    if me().subject == f"user:{identity}":
        raise Conflict(f"You can't {verb} yourself.")
