"""One row of the table of routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

Method = Literal["GET", "POST", "PATCH", "DELETE"]
JSON = "application/json"
EVENTS = "text/event-stream"
CSV = "text/csv; charset=utf-8"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Good:
    """What an operation answers when all is well: a body of `schema`, or plain text or events where there is none."""

    description: str
    schema: type[BaseModel] | None = None
    status: int = 200
    content: str | None = JSON
    """Its media type; None for no body."""
    stream: type[BaseModel] | None = None
    """The `data` of each event, where the request asks for a stream."""
    text: str | None = None
    """A media type by which it is also had, where the query asks for that."""
    many: bool = False
    """Whether it is a page of a list of such bodies."""


@dataclass(frozen=True)
class Operation:
    """A route and a method of it. Paths are written as OpenAPI does, `/admin/keys/{identity}`."""

    method: Method
    path: str
    summary: str
    tag: str
    good: tuple[Good, ...]
    body: type[BaseModel] | None = None
    body_needed: bool = True
    query: type[BaseModel] | None = None
    scope: Literal["inference", "admin"] | None = None
    """What the credential must be good for; None where anybody may ask."""
    token: Literal["refresh", "access"] | None = None
    """The route takes this JWT as its credential, and no API key."""
    headers: tuple[str, ...] = ()
    """Names of request headers, of those in `document.HEADERS`."""
    errors: tuple[int, ...] = ()
    """Statuses of refusals that are its own; those of the credential and of the body go without saying."""

    @property
    def key(self) -> tuple[str, str]:
        return self.method, self.path
