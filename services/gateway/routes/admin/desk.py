"""What the admin routes have in common: what they take and answer, and who reaches which tenant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from flask import Response, g, jsonify, request
from pydantic import BaseModel, ConfigDict, Field

from services.cache.windows import LIMITS
from services.common.errors import Forbidden, InvalidRequest
from services.common.wire import parse_json, validate
from services.gateway.accounts import PLATFORM, Accounts
from services.gateway.identify import Identifier, Principal
from services.gateway.ledger import Books

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True)
class Desk:
    """What the routes of each noun work with."""

    accounts: Accounts
    identifier: Identifier
    books: Books


class Given(BaseModel):
    """A body that is sent to us: strict types, and no unknown fields, so that a misspelt limit is not no limit."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Shown(BaseModel):
    """A body that we send, made from a row; its fields are the schema that `/openapi.json` shows."""

    model_config = ConfigDict(from_attributes=True, extra="forbid")

    @classmethod
    def of(cls, row: Any) -> dict[str, Any]:
        return cls.model_validate(row).model_dump()


ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{28}$")]
UnixTime = Annotated[int, Field(ge=0)]


class GivenRights(Given):
    """Limits, and the models that may be used. `null` takes a limit away, which leaves the default of the settings."""

    requests_per_minute: int | None = Field(None, ge=1, le=10**9)
    tokens_per_minute: int | None = Field(None, ge=1, le=10**12)
    concurrent: int | None = Field(None, ge=1, le=10**6, description="Requests that run at the same time.")
    tokens_per_day: int | None = Field(None, ge=1, le=10**15)
    tokens_per_month: int | None = Field(None, ge=1, le=10**15)
    micros_per_day: int | None = Field(None, ge=1, le=10**15, description="Millionths of the currency of the prices.")
    micros_per_month: int | None = Field(None, ge=1, le=10**15)
    models: list[ModelName] | None = Field(
        None, max_length=1000, description="Names of the models that may be used; null is every model."
    )


class GivenInTenant(GivenRights):
    tenant: str | None = Field(None, description="The admin's own, where none is named.")


class ShownRights(Shown):
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent: int | None
    tokens_per_day: int | None
    tokens_per_month: int | None
    micros_per_day: int | None
    micros_per_month: int | None
    models: list[str] | None


class Page(BaseModel):
    """Which part of a list: `limit` rows behind the one with the id `after`."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, pattern=r"^[0-9a-f]{28}\z", description="The last id of the page before.")


class TenantPage(Page):
    tenant: str | None = Field(None, max_length=63, description="Only what is this tenant's.")


def read_query(kind: type[Body]) -> Body:
    """The request's query. Raises `InvalidRequest`, which names the field."""
    return validate(kind, request.args.to_dict())


def read_body(kind: type[Body]) -> Body:
    """The request's body; none is an empty object. Raises `InvalidRequest`, which names the field."""
    return validate(kind, parse_json(request.get_data() or b"{}"))


def read_changes(kind: type[Given]) -> dict[str, Any]:
    """What a PATCH names.

    Raises:
        InvalidRequest: it names nothing, or something that is wrong.
    """
    named = read_body(kind).model_dump(exclude_unset=True)
    if not named:
        raise InvalidRequest(f"Name what to change: {', '.join(kind.model_fields)}.")
    return named


def read_new(kind: type[GivenInTenant]) -> tuple[str, dict[str, Any]]:
    """What shall be made in a tenant: the tenant's name, and what else is given.

    Raises:
        InvalidRequest: something given is wrong.
        Forbidden: the tenant is out of the admin's reach, or a limit is given that the admin may not set.
    """
    given = read_body(kind).model_dump(exclude_unset=True)
    limits_are_the_platforms(given)
    return owner(given.pop("tenant", None)), given


def me() -> Principal:
    """Who makes the request."""
    principal: Principal = g.principal
    return principal


def reach() -> str | None:
    """The one tenant that the admin administers, None for all of them."""
    return None if me().tenant == PLATFORM else me().tenant


def owner(named: str | None) -> str:
    """The tenant that something is or shall be of: the one named, else the admin's own.

    Raises:
        Forbidden: it is out of the admin's reach, whether it exists or not.
    """
    tenant = me().tenant if named is None else named
    if reach() not in (None, tenant):
        raise Forbidden(f"You administer the tenant '{me().tenant}' only.", param="tenant")
    return tenant


def confined(desk: Desk, named: str | None) -> str | None:
    """The tenant that a list is confined to, None for every tenant.

    Raises:
        Forbidden: it is out of the admin's reach.
        NotFound: there is no such tenant.
    """
    tenant = reach() if named is None else owner(named)
    return None if tenant is None else desk.accounts.tenants.get(tenant).name


def platform_only(what: str, *, param: str | None = None) -> None:
    """Lets admins of the platform pass.

    Raises:
        Forbidden: the admin is another tenant's.
    """
    if me().tenant != PLATFORM:
        raise Forbidden(f"Only admins of the tenant '{PLATFORM}' may {what}.", param=param)


def limits_are_the_platforms(given: dict[str, Any]) -> None:
    """Refuses an admin of another tenant who sets a limit, or takes one away."""
    for name in LIMITS:
        if name in given:
            platform_only("set limits", param=name)


def page_within_reach(desk: Desk, find: Callable[..., Sequence[Any]], kind: type[Shown]) -> Response:
    """The page that the query asks for, of what `find` finds in the tenants of the admin.

    Raises:
        Forbidden, NotFound: as `confined`.
    """
    query = read_query(TenantPage)
    rows = find(tenant=confined(desk, query.tenant), after=query.after, limit=query.limit + 1)
    return page(rows, query.limit, kind)


def page(rows: Sequence[Any], limit: int, kind: type[Shown]) -> Response:
    """One page, as OpenAI's lists are: `after` its last id comes the next. One row more than the page was read."""
    return jsonify(object="list", data=[kind.of(row) for row in rows[:limit]], has_more=len(rows) > limit)
