"""`/admin/keys`: API keys for programs. The plain key is shown once, in the answer that makes it."""

from __future__ import annotations

import time
from typing import Literal

from flask import Blueprint, Response
from pydantic import AliasPath, Field, field_validator

from services.common.errors import Conflict
from services.gateway.accounts import Scope
from services.gateway.routes.admin.desk import (
    Desk,
    Given,
    GivenInTenant,
    GivenRights,
    Id,
    ShownRights,
    UnixTime,
    limits_are_the_platforms,
    page_within_reach,
    reach,
    read_body,
    read_changes,
    read_new,
)
from services.gateway.routes.admin.writes import Written, differences, write

END_OF_TIME = 253_402_300_799
"""The last second of the year 9999."""
NAME = r"^[^\x00-\x1f\x7f]+\z"


class KeyFields(GivenRights):
    """What a key may be given at its birth and later."""

    expires_at: int | None = Field(None, le=END_OF_TIME, description="Unix seconds, in the future.")

    @field_validator("scopes", check_fields=False)
    @classmethod
    def _has_inference(cls, value: list[Scope] | None) -> list[Scope] | None:
        if value is not None and "inference" not in value:
            raise ValueError("must contain 'inference'; 'admin' may be added to it")
        return value

    @field_validator("expires_at")
    @classmethod
    def _in_future(cls, value: int | None) -> int | None:
        if value is not None and value <= time.time():
            raise ValueError("must be a Unix time in the future, in seconds")
        return value


class NewKey(KeyFields, GivenInTenant):
    name: str = Field(min_length=1, max_length=128, pattern=NAME)
    scopes: list[Scope] = Field(["inference"], max_length=2)


class KeyChange(KeyFields):
    name: str | None = Field(None, min_length=1, max_length=128, pattern=NAME)
    scopes: list[Scope] | None = Field(None, max_length=2)
    disabled: bool | None = Field(None, description="Refuse it until it is enabled again.")


class Rotation(Given):
    overlap: int = Field(
        86_400, ge=0, le=90 * 86_400, description="Seconds that the old key is still good for; a day by default."
    )


class KeyShown(ShownRights):
    id: Id
    object: Literal["key"] = "key"
    tenant: str = Field(validation_alias=AliasPath("tenant", "name"))
    name: str
    prefix: str = Field(description="How the key begins, by which its owner can recognize it.")
    scopes: list[Scope]
    disabled: bool
    created_at: UnixTime
    expires_at: UnixTime | None
    revoked_at: UnixTime | None
    rotated_from: Id | None = Field(description="The key whose place it took.")

    @field_validator("prefix")
    @classmethod
    def _as_written(cls, value: str) -> str:
        return f"fb-{value}"

    @field_validator("scopes", mode="before")
    @classmethod
    def _in_order(cls, value: frozenset[str]) -> list[str]:
        return sorted(value)


class KeyCreated(KeyShown):
    key: str = Field(description="The key itself. It is not kept and can't be shown again.")


def register(routes: Blueprint, desk: Desk) -> None:
    accounts = desk.accounts

    @routes.get("/keys")
    def list_keys() -> Response:
        return page_within_reach(desk, accounts.keys.page, KeyShown)

    @routes.post("/keys")
    def create_key() -> Response:
        tenant, given = read_new(NewKey)
        name = given.pop("name")
        scopes = frozenset(given.pop("scopes", ["inference"]))

        def perform() -> Written:
            key, plain = accounts.keys.create(tenant, name, scopes=scopes, **given)
            detail = {"name": name, "scopes": sorted(scopes), **given}
            return Written("key.create", key.id, tenant, {**KeyShown.of(key), "key": plain}, 201, detail=detail)

        return write(desk, perform)

    @routes.get("/keys/<identity>")
    def get_key(identity: str) -> tuple[dict[str, object], int]:
        return KeyShown.of(accounts.keys.get(identity, tenant=reach())), 200

    @routes.patch("/keys/<identity>")
    def change_key(identity: str) -> Response:
        changes = read_changes(KeyChange)
        limits_are_the_platforms(changes)
        if changes.get("scopes") is not None:
            changes["scopes"] = frozenset(changes["scopes"])

        def perform() -> Written:
            before = accounts.keys.get(identity, tenant=reach())
            if before.revoked_at is not None:
                raise Conflict("The key has been revoked, which is for good.")
            shown = KeyShown.of(before)
            key = accounts.keys.update(identity, tenant=reach(), **changes)
            after = KeyShown.of(key)
            return Written(
                "key.update", key.id, key.tenant.name, after, detail=differences(shown, after), forget=f"key:{identity}"
            )

        return write(desk, perform)

    @routes.post("/keys/<identity>/rotate")
    def rotate_key(identity: str) -> Response:
        overlap = read_body(Rotation).overlap

        def perform() -> Written:
            key, plain = accounts.keys.rotate(identity, tenant=reach(), overlap=overlap)
            body = {**KeyShown.of(key), "key": plain}
            detail = {"key": key.id, "overlap": overlap}
            return Written("key.rotate", identity, key.tenant.name, body, 201, detail=detail, forget=f"key:{identity}")

        return write(desk, perform)

    @routes.delete("/keys/<identity>")
    def revoke_key(identity: str) -> Response:
        def perform() -> Written:
            key = accounts.keys.revoke(identity, tenant=reach())
            return Written("key.revoke", key.id, key.tenant.name, KeyShown.of(key), forget=f"key:{identity}")

        return write(desk, perform)
