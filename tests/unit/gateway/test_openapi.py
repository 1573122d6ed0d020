"""The API's description: it has every route and no other, and is OpenAPI. `tests/integration/gateway/test_openapi.py`
holds real answers against it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator

from services.common.errors import InvalidRequest
from services.common.settings import GatewaySettings
from services.gateway.app import close, create_app
from services.gateway.ledger.usage import read_time
from services.gateway.openapi import document
from services.gateway.openapi.operations import OPERATIONS
from tests.conftest import own_application
from tests.unit.gateway.conftest import JWT_SECRET, KEY_SECRET

DOCUMENT = document()


@pytest.fixture(scope="module")
def whole_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """The whole application, of which nothing but the routes is wanted: neither Redis nor a pod answers."""
    folder: Path = tmp_path_factory.mktemp("app")
    with own_application():
        app = create_app(
            GatewaySettings(
                jwt_secret=JWT_SECRET,
                key_secret=KEY_SECRET,
                database_url=f"sqlite:///{folder / 'forebay.db'}",
                redis_url="redis://127.0.0.1:1/0",
                upstreams="http://127.0.0.1:1",
            )
        )
        yield app
        close(app)


@pytest.fixture(scope="module")
def description(whole_app: Flask) -> FlaskClient:
    return whole_app.test_client()


def described() -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, child in node.items():
            if name == "$ref":
                yield child
            else:
                yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_every_route_is_described_and_every_description_is_a_route(whole_app: Flask) -> None:
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in whole_app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert routes == described()


def test_no_operation_is_described_twice() -> None:
    keys = [operation.key for operation in OPERATIONS]
    assert len(keys) == len(set(keys))
    names = [it["operationId"] for methods in DOCUMENT["paths"].values() for it in methods.values()]
    assert len(names) == len(set(names))


def test_whatever_is_referred_to_is_there() -> None:
    for reference in references(DOCUMENT):
        place: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        assert place


def test_every_schema_is_a_schema() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert "\\z" not in str(schema), name


def test_only_what_is_meant_to_be_open_needs_no_credential() -> None:
    free = {
        (method.upper(), path) for path, it in DOCUMENT["paths"].items() for method in it if not it[method]["security"]
    }
    assert free == {
        ("POST", "/login"),
        ("GET", "/health"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
    }


def test_every_write_of_the_admin_api_takes_an_idempotency_key() -> None:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/admin") and method != "get":
                assert {"$ref": "#/components/parameters/Idempotency-Key"} in operation["parameters"], (method, path)


@pytest.mark.parametrize(
    ("key", "good"),
    [("order 7", True), ("x" * 255, True), ("", False), ("x" * 256, False), ("é", False), ("a\x7f", False)],
)
def test_what_the_document_says_of_an_idempotency_key_is_what_is_taken(key: str, good: bool) -> None:
    schema = DOCUMENT["components"]["parameters"]["Idempotency-Key"]["schema"]
    assert Draft202012Validator(schema).is_valid(key) is good


@pytest.mark.parametrize(
    "given", ["2026-11-24", "1795540793", "0", "2026-13-01", "2026-11-32", "0" * 13, "yesterday", "2026-11-24T00:00"]
)
def test_what_the_document_says_of_a_time_is_what_is_read(given: str) -> None:
    parameters = DOCUMENT["paths"]["/v1/usage"]["get"]["parameters"]
    (schema,) = (one["schema"] for one in parameters if one["name"] == "start")
    try:
        read_time("start", given)
        good = True
    except InvalidRequest:
        good = False
    assert Draft202012Validator(schema).is_valid(given) is good


def test_the_gateways_own_fields_are_not_offered_to_clients() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert "messages" in schemas["ChatRequest"]["properties"]
    for name in ("ChatRequest", "CompletionRequest"):
        assert not {"cache_salt", "resume_token_ids"} & schemas[name]["properties"].keys()


def test_the_document_is_served_to_everybody(description: FlaskClient) -> None:
    answer = description.get("/openapi.json")
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    assert answer.get_json() == DOCUMENT
    assert answer.get_json()["openapi"].startswith("3.1")


def test_the_page_names_every_route_and_body_and_fetches_nothing(description: FlaskClient) -> None:
    answer = description.get("/docs")
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    for path, methods in DOCUMENT["paths"].items():
        assert f"<code>{path}</code>" in answer.text
        for operation in methods.values():
            assert f'<details id="{operation["operationId"]}">' in answer.text
    for name in DOCUMENT["components"]["schemas"]:
        assert f'<details id="{name}">' in answer.text
    for target in re.findall(r'href="#([^"]+)"', answer.text):
        assert f'id="{target}"' in answer.text
    assert not re.search(r"<(script|link|img|iframe)|src=|url\(|https?://", answer.text)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
