"""What is answered before Flask is asked: the same bytes again, of a caller who may, on a real Valkey server."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from io import BytesIO
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.cache.connection import Connection
from services.cache.kept import Kept
from services.cache.ledger import STREAM, Entry
from services.cache.quotas import Quotas
from services.cache.responses import Responses, salted
from services.cache.windows import Limits
from services.common import sse
from services.common.metrics import GatewayMetrics
from services.common.settings import Price
from services.common.wire import Answer, Usage
from services.gateway.identify import Principal
from services.gateway.prices import Prices
from services.gateway.recall.known import BODY, CALL, LARGE, Asked, Front, Known, renewed
from services.gateway.upstreams.discover import Fleet
from services.gateway.upstreams.resolve import Source
from tests.valkey import Valkey, run_valkey

BODY_SENT = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"temperature":0}'
NAME = blake2b(BODY_SENT, digest_size=32, person=b"chat").digest()
DIGEST = b"d" * 32
WHOLE = sse.dump(Answer.new("chat", "m").whole([("Hello", "stop")], Usage(10, 5, 4)))
CALLER = Principal(
    "acme", "t1", "key:1", frozenset({"inference"}), None, Limits(2, tokens_per_month=9), Limits(), "salt"
)


class Desk:
    """The front with what it needs of a gateway, and what it hands on."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.caller: Principal | None = CALLER
        self.registry = CollectorRegistry()
        self.handed_on: list[dict[str, Any]] = []
        metrics = GatewayMetrics(self.registry)
        self.known = Known()
        gateway = SimpleNamespace(
            settings=SimpleNamespace(max_body_bytes=1 << 20),
            known=self.known,
            identifier=SimpleNamespace(trusted=lambda header: self.caller if header == "Bearer fb-1" else None),
            responses=Responses(connection, ttl=60, max_bytes=1000),
            quotas=Quotas(connection),
            prices=Prices({"m": Price(input=1, cached_input=0, output=2)}),
            metrics=metrics,
            fleet=Fleet(Source([]), interval=1, metrics=metrics),
            budgets=SimpleNamespace(note=lambda *_: None),
        )
        self.front = Front(cast("Any", gateway), self.inner)

    def inner(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.handed_on.append(environ)
        start_response("204 No Content", [])
        return [b""]

    def keep(self) -> None:
        """The answer is kept, and known to this process."""
        self.connection.store(salted("salt", DIGEST), Kept(WHOLE, 10, 4, 5).value(), 60)
        self.known.note(NAME, Asked(DIGEST, "m"))

    def send(self, body: bytes = BODY_SENT, **more: str) -> tuple[str, dict[str, str], bytes]:
        """The status, the headers and the body of the answer."""
        told: list[tuple[str, list[tuple[str, str]]]] = []
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/v1/chat/completions",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_AUTHORIZATION": "Bearer fb-1",
            "HTTP_X_REQUEST_ID": "r-1",
            "wsgi.input": BytesIO(body),
            **more,
        }
        answer = self.front(environ, cast("Any", lambda *said: told.append(said)))
        sent = b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        return told[0][0], dict(told[0][1]), sent

    def entries(self) -> list[Entry]:
        return [Entry.of(fields) for _, fields in self.connection.reach(lambda redis: redis.xrange(STREAM))]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with run_valkey() as running:
        yield running


@pytest.fixture
def desk(server: Valkey) -> Iterator[Desk]:
    connection = Connection(server.url)
    connection.reach(lambda redis: redis.flushall())
    yield Desk(connection)
    connection.close()


class TestWhatLiesReady:
    def test_it_is_answered_as_any_request_is(self, desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
        desk.keep()
        with caplog.at_level(logging.INFO, "forebay.access"):
            status, headers, body = desk.send()
        assert (status, desk.handed_on) == ("200 OK", [])
        old, new = json.loads(WHOLE), json.loads(body)
        assert new["id"] != old["id"]
        assert {**new, "id": 0, "created": 0} == {**old, "id": 0, "created": 0}
        assert headers["Content-Type"] == "application/json"
        assert headers["Content-Length"] == str(len(body))
        assert headers["X-Forebay-Cache"] == "hit"
        assert headers["X-Forebay-Route"] == "model=m; cache=hit; retries=0"
        assert headers["X-Request-Id"] == "r-1"
        assert headers["x-ratelimit-remaining-requests"] == "1"
        (line,) = caplog.records
        told = {name: getattr(line, name) for name in ("request_id", "tenant", "route", "status", "cache", "outcome")}
        assert told == {
            "request_id": "r-1",
            "tenant": "acme",
            "route": "model=m; cache=hit; retries=0",
            "status": 200,
            "cache": "hit",
            "outcome": "cached",
        }

    def test_it_is_in_the_ledger_and_counted_once(self, desk: Desk) -> None:
        labels = {"model": "unknown", "tenant": "acme"}
        counted = {
            "forebay_gateway_requests_total": ({**labels, "outcome": "cached"}, 1),
            "forebay_gateway_saved_tokens_total": ({**labels, "source": "hit"}, 15),
            "forebay_gateway_cost_saved_total": (labels, 16e-6),
            "forebay_gateway_cache_lookups_total": ({"model": "unknown", "result": "hit"}, 1),
            "gen_ai_server_request_duration_seconds_count": ({"model": "unknown"}, 1),
        }
        desk.keep()
        desk.send()  # others of this process may have counted under the same labels, which a first look does not show
        before = {name: desk.metric(name, **labels) or 0 for name, (labels, _) in counted.items()}
        desk.send()
        _, entry = desk.entries()
        assert (entry.request_id, entry.tenant, entry.subject, entry.model) == ("r-1", "acme", "key:1", "m")
        assert (entry.outcome, entry.cache, entry.cost_micros, entry.saved_micros) == ("cached", "hit", 0, 6 + 10)
        for name, (labels, more) in counted.items():
            assert (desk.metric(name, **labels) or 0) - before[name] == pytest.approx(more), name
        assert desk.metric("forebay_gateway_budget_used_ratio", tenant="acme", period="day") is None

    def test_limits_hold_for_it(self, desk: Desk) -> None:
        desk.keep()
        desk.send()
        desk.send()
        assert desk.send()[0] == "204 No Content", "Flask says why not"
        assert len(desk.entries()) == 2


class TestWhatDoesNot:
    def handed_on(self, desk: Desk, body: bytes = BODY_SENT, **more: str) -> dict[str, Any]:
        """What Flask is given of a request that has left no trace."""
        assert desk.send(body, **more)[0] == "204 No Content"
        assert desk.entries() == []
        (environ,) = desk.handed_on
        assert environ["wsgi.input"].read() == body
        return environ

    @pytest.mark.parametrize(
        "more",
        [
            {"HTTP_CACHE_CONTROL": "no-cache"},
            {"HTTP_CONTENT_ENCODING": "gzip"},
            {"HTTP_IDEMPOTENCY_KEY": "k"},
            {"HTTP_X_FOREBAY_TIMEOUT": "1"},
            {"HTTP_TRANSFER_ENCODING": "chunked"},
            {"REQUEST_METHOD": "PUT"},
            {"PATH_INFO": "/v1/completions"},
            {"PATH_INFO": "/v1/chat/completions/"},
            {"CONTENT_LENGTH": ""},
            {"CONTENT_LENGTH": "-1"},
            {"HTTP_AUTHORIZATION": "Bearer fb-2"},
        ],
        ids=lambda more: "=".join(next(iter(more.items()))),
    )
    def test_a_request_that_is_more_than_its_body_is_flasks(self, desk: Desk, more: dict[str, str]) -> None:
        desk.keep()
        self.handed_on(desk, **more)

    def test_another_body_is_flasks_which_is_told_its_digest(self, desk: Desk) -> None:
        desk.keep()
        assert self.handed_on(desk, BODY_SENT + b" ")[BODY] != NAME

    def test_a_large_body_is_not_looked_at(self, desk: Desk) -> None:
        assert BODY not in self.handed_on(desk, b" " * (LARGE + 1))

    @pytest.mark.parametrize(("scopes", "models"), [((), None), (("inference",), frozenset({"n"}))])
    def test_who_may_not_is_flasks(self, desk: Desk, scopes: tuple[str, ...], models: frozenset[str] | None) -> None:
        desk.keep()
        desk.caller = Principal("acme", "t1", "key:1", frozenset(scopes), models, Limits(), Limits(), "salt")
        self.handed_on(desk)

    def test_another_tenants_answer_is_not_found(self, desk: Desk) -> None:
        desk.keep()
        desk.caller = Principal("b", "t2", "key:2", frozenset({"inference"}), None, Limits(), Limits(), "other")
        self.handed_on(desk)

    def test_an_answer_that_is_gone_is_forgotten(self, desk: Desk) -> None:
        desk.known.note(NAME, Asked(DIGEST, "m"))
        assert CALL in self.handed_on(desk)
        assert desk.known.find(NAME) is None

    def test_with_redis_gone_all_is_flasks(self, server: Valkey) -> None:
        gone = Desk(Connection("redis://127.0.0.1:1/0"))
        gone.known.note(NAME, Asked(DIGEST, "m"))
        assert gone.send()[0] == "204 No Content"
        assert gone.known.find(NAME) is not None


def test_the_least_lately_noted_is_forgotten_first() -> None:
    known = Known(2)
    for name in (b"1", b"2", b"1", b"3"):
        known.note(name, Asked(name, "m"))
    assert [known.find(name) is not None for name in (b"1", b"2", b"3")] == [True, False, True]


@given(st.text(), st.booleans())
def test_a_renewed_answer_differs_in_id_and_time_alone(text: str, ours: bool) -> None:
    body = {**Answer("chat", "chatcmpl-1", "m", 1).whole([(text, "stop")], Usage(1, 1))}
    if not ours:
        body = {**body, "id": body.pop("id")}  # another engine's order
    new = json.loads(renewed(sse.dump(body), "chat"))
    assert new["id"].startswith("chatcmpl-")
    assert new["id"] != "chatcmpl-1"
    assert new["created"] > 1
    assert {**new, "id": "", "created": 0} == {**body, "id": "", "created": 0}
