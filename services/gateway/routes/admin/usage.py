"""`GET /admin/usage`, the sums over the ledger, and `GET /admin/requests/<request id>`, its rows of one request.

`GET /v1/usage` answers whoever asks with their own sums, so that a member need not ask an admin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any, Literal, TypeVar

from flask import Blueprint, Flask, Response, request
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from services.common.errors import NotFound, UpstreamUnavailable
from services.gateway.identify import Identifier, require
from services.gateway.ledger import Books, BooksClosed, usage
from services.gateway.routes.admin.desk import Desk, Shown, owner, page, reach, read_query

CSV_ROWS = 100_000
"""Rows of a CSV export at most."""
CSV_PAGE = 1000
ROWS_OF_A_REQUEST = 100
TIME: dict[str, JsonValue] = {
    "pattern": "^([0-9]{1,12}|[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01]))$",
}
"""How the description of the API says what `usage.read_time` reads, whose refusal says more than a pattern's would."""

Result = TypeVar("Result")


class OwnUsageQuery(BaseModel):
    """What is summed up, over which time, in which groups."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        None, min_length=1, max_length=255, pattern=r"^[^\x00]*\z", description="Only this model."
    )
    group_by: str = Field("", max_length=64, description="Any of `key`, `model`, `day`, comma-separated; else one sum.")
    start: str | None = Field(
        None,
        max_length=20,
        json_schema_extra=TIME,
        description="A day (`2026-11-24`, UTC) or Unix seconds; inclusive.",
    )
    end: str | None = Field(
        None, max_length=20, json_schema_extra=TIME, description="A day or Unix seconds; exclusive."
    )
    format: Literal["json", "csv"] = Field("json", description="`csv` has all rows, 100,000 at most, and no pages.")
    limit: int = Field(100, ge=1, le=1000)
    after: str | None = Field(None, max_length=2000, description="The last id of the page before.")


class UsageQuery(OwnUsageQuery):
    """The same, of the tenant or key that is named."""

    tenant: str | None = Field(None, pattern=r"^[a-z0-9-]{1,63}\z", description="Only what this tenant used.")
    key: str | None = Field(
        None,
        pattern=r"^([0-9a-f]{28}|[a-z]+:[!-~]{1,120})\z",
        description="Only what this key used, by its id; or another subject, as `user:<id>`.",
    )
    group_by: str = Field(
        "", max_length=64, description="Any of `tenant`, `key`, `model`, `day`, comma-separated; else one sum."
    )


class UsageShown(Shown):
    """One group's sums; the groups that were not asked for are null."""

    id: str
    object: Literal["usage"] = "usage"
    tenant: str | None = None
    key: str | None = Field(None, description="The subject: `key:<id>`, `user:<id>` or `oidc:…`.")
    model: str | None = None
    day: date | None = Field(None, description="The day in UTC on which the calls arrived.")
    requests: int
    prompt_tokens: int
    cached_tokens: int = Field(description="Those of the prompt that a pod's prefix cache spared.")
    completion_tokens: int
    gpu_seconds: float = Field(description="The calls' part of the time in which pods computed.")
    energy_joules: float | None = Field(description="The calls' part of the energy; null where no machine tells it.")
    cost_micros: int = Field(description="By the prices of the settings, in millionths of their currency.")
    saved_micros: int = Field(description="What answers that were there already would have cost.")

    @classmethod
    def of(cls, row: Any) -> dict[str, Any]:
        return cls.model_validate(row).model_dump(mode="json")


class CallShown(Shown):
    """A call as the ledger has it."""

    id: str
    object: Literal["call"] = "call"
    request_id: str
    tenant: str
    tenant_id: str
    subject: str
    model: str
    kind: str
    outcome: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    started_ms: int = Field(description="Unix milliseconds at arrival.")
    day: int = Field(description="Days from 1970-01-01 to the arrival, in UTC.")
    duration_ms: int
    ttft_ms: int | None
    compute_seconds: float | None
    energy_joules: float | None
    upstream: str
    cost_micros: int
    saved_micros: int
    cache: str
    retries: int
    resumes: int
    route: str


def register(routes: Blueprint, desk: Desk) -> None:
    @routes.get("/usage")
    def show_usage() -> Response:
        query = read_query(UsageQuery)
        # Not looked up: the ledger speaks of tenants that are gone, too.
        tenant = reach() if query.tenant is None else owner(query.tenant)
        subject = f"key:{query.key}" if query.key and ":" not in query.key else query.key
        return _answer(desk.books, query, tenant=tenant, subject=subject)

    @routes.get("/requests/<request_id>")
    def show_request(request_id: str) -> Response:
        rows = _asked(lambda: desk.books.of_request(request_id, tenant=reach(), limit=ROWS_OF_A_REQUEST + 1))
        if not rows:
            raise NotFound("The ledger has no such request, or not yet.")
        return page(rows, ROWS_OF_A_REQUEST, CallShown)


def register_own(app: Flask, identifier: Identifier, books: Books) -> None:
    """Adds `GET /v1/usage`."""

    @app.get("/v1/usage")
    def own_usage() -> Response:
        principal = identifier.identify(request.headers.get("Authorization"))
        require(principal, "inference")
        return _answer(books, read_query(OwnUsageQuery), tenant=principal.tenant, subject=principal.subject)


def _answer(books: Books, query: OwnUsageQuery, *, tenant: str | None, subject: str | None) -> Response:
    question = usage.Question(
        usage.read_groups(query.group_by),
        tenant,
        subject,
        query.model,
        usage.read_time("start", query.start),
        usage.read_time("end", query.end),
    )

    def sums(after: str | None, limit: int) -> list[dict[str, Any]]:
        return _asked(lambda: usage.sums(books, question, after=after, limit=limit))

    if query.format == "json":
        return page(sums(query.after, query.limit + 1), query.limit, UsageShown)
    first = sums(query.after, CSV_PAGE)  # before the answer begins, so that a failure has its status

    def rows() -> Iterator[dict[str, Any]]:
        some, count = first, 0
        while some and count < CSV_ROWS:
            yield from some
            count += len(some)
            some = sums(some[-1]["id"], CSV_PAGE) if len(some) == CSV_PAGE else []

    named = set(question.groups)
    columns = [name for name in UsageShown.model_fields if name not in {"id", "object", *usage.GROUPS} | named]
    response = Response(usage.as_csv(rows(), [*question.groups, *columns]), mimetype="text/csv")
    response.headers["Content-Disposition"] = 'attachment; filename="usage.csv"'
    return response


def _asked(question: Callable[[], Result]) -> Result:
    try:
        return question()
    except BooksClosed:
        raise UpstreamUnavailable("The ledger can't be read just now. Try again soon.", retry_after=5) from None
