"""From the bytes of a body to a validated model, or to an error that names the field which is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from services.common.errors import InvalidRequest, MalformedJson

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Request = TypeVar("Request", bound=BaseModel)


def parse_json(body: bytes) -> dict[str, Any]:
    """A request body as a dictionary.

    Raises:
        MalformedJson: it is not JSON, not UTF-8, nested too deep, or not an object.
    """
    try:
        # Some clients on Windows write the mark, which RFC 8259 section 8.1 lets a reader pass over.
        value = from_json(body.removeprefix(BYTE_ORDER_MARK), allow_inf_nan=False)
    except ValueError as error:
        raise MalformedJson(f"The request body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise MalformedJson("The request body must be a JSON object.")
    return value


def validate(kind: type[Request], value: Mapping[str, Any]) -> Request:
    """`value` as a model of `kind`.

    Raises:
        InvalidRequest: names the first field that is wrong, and why.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        where, reason = _first(error, value)
        message = f"Invalid value for '{where}': {reason}." if where else f"{reason}."
        raise InvalidRequest(message, param=where) from None


def _first(error: ValidationError, value: Mapping[str, Any]) -> tuple[str | None, str]:
    """Where the first thing is wrong, and why. pydantic tells of every branch of a union that the value is not: the
    branch that went deepest is the one that was meant."""
    found = error.errors(include_url=False, include_input=False)
    paths = [_path_in(value, each["loc"], missing=each["type"] == "missing") for each in found]
    at = max((n for n in range(len(found)) if found[n]["loc"][:1] == found[0]["loc"][:1]), key=lambda n: len(paths[n]))
    return ".".join(paths[at]) or None, found[at]["msg"].removeprefix("Value error, ")


def _path_in(value: Any, location: tuple[int | str, ...], *, missing: bool) -> list[str]:
    """The location as a path into `value`; leaves out the names of union branches that pydantic puts in it."""
    path = []
    for number, part in enumerate(location, 1):
        if isinstance(value, Mapping) and isinstance(part, str):
            if part not in value and not (missing and number == len(location)):
                continue
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        path.append(str(part))
    return path
