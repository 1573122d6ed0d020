"""Makes the OpenAPI document from the table of operations and the pydantic models that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from services.gateway.openapi.answers import Error
from services.gateway.openapi.operation import EVENTS, JSON, Good, Operation
from services.gateway.openapi.operations import OPERATIONS
from services.gateway.routes.admin.desk import Shown

Mode = Literal["validation", "serialization"]
REF = "#/components/schemas/{model}"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

HEADERS = {
    "X-Request-Id": "Names the request in every log line and in the answer; one is made where none is given.",
    "traceparent": "W3C trace context, which is passed on.",
    "X-Forebay-Timeout": "Seconds that the request may take, where less than the route's own time-out is wanted.",
    "X-Forebay-Session": "Requests of one session go to the same pod where that can be.",
    "Cache-Control": "`no-cache` asks for a fresh answer, `no-store` for one that is not kept either.",
    "Last-Event-ID": "The last event of a stream that broke off: what came after it is sent.",
    "Idempotency-Key": "The same request with the same key is done once, and answered the same again. 409 for another.",
}
ERRORS = {
    400: "A field or header is wrong; `param` names it",
    401: "The credential is missing, malformed, unknown, revoked or expired",
    403: "The credential does not have the scope, or the tenant is out of its reach",
    404: "There is no such thing",
    409: "It contradicts what is there",
    413: "The body is too large",
    429: "A limit is reached, or every pod is full; `Retry-After` says when to come back",
    502: "The pod failed",
    503: "Nobody can answer just now; `Retry-After` says when to come back",
    504: "The time-out has passed",
}
HEADER_SCHEMAS: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {"minLength": 1, "maxLength": 255, "pattern": "^[ -~]*$"},
}
"""What the value of a header must be, where not every text will do."""
OURS_ALONE = ("cache_salt", "resume_token_ids")
"""Fields that the gateway sets towards pods; a client's are dropped."""


def document() -> dict[str, Any]:
    """The OpenAPI document of the gateway, which is the same for everybody."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Forebay",
            "version": version("forebay"),
            "description": "An OpenAI-compatible gateway in front of inference pods, and its administration.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": DIALECT,
        "tags": [{"name": name} for name in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": {str(status): _refusal(text) for status, text in ERRORS.items()},
            "parameters": {name: _header(name, text) for name, text in HEADERS.items()},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, `fb-…`."},
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "An access token of `POST /login`, or of an outside issuer that is trusted.",
                },
                "refresh": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A refresh token of `POST /login`.",
                },
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {str(good.status): _good(good) for good in operation.good}
    for status in sorted({*operation.errors, *_implied(operation)}):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/{status}"})
    described: dict[str, Any] = {
        "operationId": operation_id(operation),
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": _security(operation),
        "parameters": [*_path(operation), *_query(operation.query), *_headers(operation)],
        "responses": responses,
    }
    if operation.body is not None:
        schema = {"$ref": REF.format(model=operation.body.__name__)}
        described["requestBody"] = {"required": operation.body_needed, "content": {JSON: {"schema": schema}}}
    return described


def operation_id(operation: Operation) -> str:
    """Such as `get_admin_keys_identity`."""
    return "_".join(re.findall(r"[a-z0-9]+", f"{operation.method} {operation.path}".lower()))


def _implied(operation: Operation) -> Iterator[int]:
    if operation.body is not None:
        yield from (400, 413)
    if operation.query is not None or operation.headers:
        yield 400
    if operation.scope is not None:
        yield from (401, 403)
    if operation.token is not None:
        yield 401


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    if operation.token is not None:
        return [{"refresh" if operation.token == "refresh" else "token": []}]  # noqa: S105
    return [] if operation.scope is None else [{"key": [operation.scope]}, {"token": [operation.scope]}]


def _good(good: Good) -> dict[str, Any]:
    if good.content is None:
        return {"description": good.description}
    schema: dict[str, Any] = {"type": "string"}
    if good.schema is not None:
        schema = {"$ref": REF.format(model=good.schema.__name__)}
    if good.many:
        schema = {
            "type": "object",
            "properties": {
                "object": {"const": "list"},
                "data": {"type": "array", "items": schema},
                "has_more": {"type": "boolean", "description": "Whether another page follows: `after` the last id."},
            },
            "required": ["object", "data", "has_more"],
            "additionalProperties": False,
        }
    content = {good.content: {"schema": schema}}
    if good.stream is not None:
        # OpenAPI 3.1 has no word for the events of a stream, so the schema of one's data stands in the description.
        each = REF.format(model=good.stream.__name__)
        content[EVENTS] = {
            "schema": {"type": "string", "description": f"With `stream`: events, of each the data is a {each}."}
        }
    if good.text is not None:
        content[good.text] = {"schema": {"type": "string"}}
    return {"description": good.description, "content": content}


def _refusal(description: str) -> dict[str, Any]:
    schema = {"$ref": REF.format(model=Error.__name__)}
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _path(operation: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", operation.path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _query(model: type[BaseModel] | None) -> list[dict[str, Any]]:
    if model is None:
        return []
    schema = _tidy(model.model_json_schema(ref_template=REF))
    needed = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in needed, "schema": one}
        for name, one in schema["properties"].items()
    ]


def _headers(operation: Operation) -> list[dict[str, str]]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in operation.headers]


def _header(name: str, description: str) -> dict[str, Any]:
    schema = {"type": "string", **HEADER_SCHEMAS.get(name, {})}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def _schemas() -> dict[str, Any]:
    wanted: dict[tuple[type[BaseModel], Mode], None] = {(Error, "validation"): None}
    for operation in OPERATIONS:
        if operation.body is not None:
            wanted[operation.body, "validation"] = None
        for good in operation.good:
            for model in (good.schema, good.stream):
                if model is not None:
                    # What is made from a row has all its fields; of the others, some may be left out.
                    wanted[model, "serialization" if issubclass(model, Shown) else "validation"] = None
    _, found = models_json_schema(list(wanted), ref_template=REF)
    schemas: dict[str, Any] = _tidy(found["$defs"])
    for schema in schemas.values():
        for name in OURS_ALONE:
            schema.get("properties", {}).pop(name, None)
    return schemas


def _tidy(schema: Any) -> Any:
    """Drops pydantic's titles, which repeat the names, and writes patterns as ECMA-262 does, which JSON Schema asks
    for: it has no `\\z`, and its `$` is the end of the text alone."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {name: _tidy(each) for name, each in schema.items() if name != "title" or isinstance(each, dict)}
    if isinstance(tidy.get("pattern"), str):
        tidy["pattern"] = tidy["pattern"].replace(r"\z", "$")
    return tidy
