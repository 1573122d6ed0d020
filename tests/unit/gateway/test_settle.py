"""Admission and settlement of a call on a real Valkey server: what is granted, and that the books close once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import gevent
import pytest
from prometheus_client import CollectorRegistry

from services.cache.connection import Connection
from services.cache.ledger import STREAM, Entry
from services.cache.quotas import Quotas
from services.cache.responses import Responses
from services.cache.tapes import Tapes
from services.cache.windows import Limits
from services.common.errors import ApiError, ClientGone, Forbidden, ModelNotFound, QuotaExceeded, RateLimited
from services.common.metrics import GatewayMetrics
from services.common.settings import Price
from services.common.wire import ChatRequest, Usage, validate
from services.gateway import settle as step
from services.gateway.admit import Admission, admit
from services.gateway.budgets import Budgets
from services.gateway.call import Call, Spent
from services.gateway.estimate import Estimates
from services.gateway.identify import Principal
from services.gateway.ledger import Books
from services.gateway.parts import Gateway
from services.gateway.prices import Prices
from services.gateway.recall.flights import Flights
from services.gateway.recall.known import Known
from services.gateway.settle import settle
from services.gateway.upstreams.discover import Fleet
from services.gateway.upstreams.resolve import Source
from tests.valkey import Valkey, run_valkey

LIMITS = Limits(10, 1000, 2)


class Spool(list[Entry]):
    """Where entries go that did not get into Redis."""

    spool = list.append


@dataclass
class Parts:
    """What the two steps need of a gateway."""

    connection: Connection
    metrics: GatewayMetrics
    quotas: Quotas
    responses: Responses
    fleet: Fleet
    flights: Flights
    prices: Prices = field(default_factory=lambda: Prices({"m": Price(input=1, cached_input=0, output=2)}))
    estimates: Estimates = field(default_factory=Estimates)
    ledger: Spool = field(default_factory=Spool)
    known: Known = field(default_factory=Known)
    budgets: Budgets = field(init=False)
    spans: None = None

    def __post_init__(self) -> None:
        self.budgets = Budgets(cast("Books", None), self.quotas)  # not started: looks nothing up


class Desk:
    """Admits and settles calls of one caller."""

    def __init__(self, connection: Connection) -> None:
        metrics = GatewayMetrics(CollectorRegistry())
        fleet = Fleet(Source([]), interval=1, metrics=metrics)
        responses = Responses(connection, ttl=60, max_bytes=1000)
        quotas = Quotas(connection)
        self.parts = Parts(connection, metrics, quotas, responses, fleet, Flights(Tapes(connection, quotas.process)))
        self.gateway = cast("Gateway", self.parts)

    def call(self, **body: Any) -> Call:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, **body}
        return Call(
            kind="chat", request=validate(ChatRequest, body), body=body, authorization=None, request_id="req-1",
            traceparent="", started=time.monotonic(), timeout=60, use_cache=True, client=None,
        )  # fmt: skip

    def admit(self, call: Call, limits: Limits = LIMITS, models: frozenset[str] | None = None) -> Admission:
        caller = Principal("acme", "t1", "key:1", frozenset({"inference"}), models, limits, Limits(), "salt")
        return admit(self.gateway, caller, call)

    def entries(self) -> list[Entry]:
        """What is in the ledger's stream."""
        rows = self.parts.connection.reach(lambda redis: redis.xrange(STREAM))
        return [Entry.of(fields) for _, fields in rows]

    def left(self) -> tuple[int, int]:
        """Leases and slots that are held."""
        process = self.parts.quotas.process
        return self.parts.connection.reach(
            lambda redis: (redis.hlen(f"forebay:leases:{process}"), redis.zcard("forebay:running:key:1"))
        )


@pytest.fixture
def server() -> Iterator[Valkey]:
    with run_valkey() as running:
        yield running


@pytest.fixture
def desk(server: Valkey) -> Iterator[Desk]:
    connection = Connection(server.url)
    yield Desk(connection)
    connection.close()


def test_the_ledger_gets_all_that_a_call_was_and_cost(desk: Desk) -> None:
    call = desk.call()
    admission = desk.admit(call)
    assert desk.left() == (1, 1)
    usage = Usage(10, 5, cached_tokens=4, compute_seconds=0.25, energy_joules=1.5)
    spent = Spent(model="m", upstream="http://10.0.0.7:8000", policy="prefix", usage=usage, outcome="ok", retries=1)
    settle(desk.gateway, call, admission, spent)
    (entry,) = desk.entries()
    assert (entry.id, entry.request_id, entry.tenant, entry.tenant_id) == (call.id, "req-1", "acme", "t1")
    assert (entry.subject, entry.model, entry.kind, entry.outcome) == ("key:1", "m", "chat", "ok")
    assert (entry.prompt_tokens, entry.cached_tokens, entry.completion_tokens) == (10, 4, 5)
    assert (entry.compute_seconds, entry.energy_joules, entry.retries) == (0.25, 1.5, 1)
    assert entry.cost_micros == 6 * 1 + 4 * 0 + 5 * 2
    assert entry.route == spent.route
    assert abs(entry.started_ms - time.time() * 1000) < 5000
    assert desk.left() == (0, 0)
    assert desk.parts.ledger == []


def test_the_price_is_that_of_the_model_that_answered(desk: Desk) -> None:
    call = desk.call(model="dear")
    settle(desk.gateway, call, desk.admit(call), Spent(model="m", usage=Usage(10, 0), outcome="ok"))
    assert [(entry.model, entry.cost_micros) for entry in desk.entries()] == [("m", 10)]


def test_books_close_once_however_often_it_is_tried(desk: Desk) -> None:
    call = desk.call()
    admission = desk.admit(call)
    for _ in range(2):
        settle(desk.gateway, call, admission, Spent(usage=Usage(10, 5), outcome="ok"))
    assert len(desk.entries()) == 1


def test_what_another_made_costs_nothing_and_is_counted_as_saved(desk: Desk) -> None:
    call = desk.call()
    spent = Spent(model="m", recalled="hit", cache="hit", usage=Usage(10, 5), outcome="cached")
    settle(desk.gateway, call, desk.admit(call), spent)
    (entry,) = desk.entries()
    assert (entry.prompt_tokens, entry.completion_tokens, entry.cost_micros) == (0, 0, 0)
    assert (entry.saved_micros, entry.cache) == (20, "hit")


@pytest.mark.parametrize(
    ("streamed", "error", "outcome"),
    [
        (False, ClientGone(), "client_gone"),
        (True, None, "client_gone"),  # the stream was never begun, since nobody was there
        (True, gevent.GreenletExit(), "error"),
        (False, ValueError("a bug"), "error"),
    ],
)
def test_a_call_that_fails_is_settled_too(
    desk: Desk, streamed: bool, error: BaseException | None, outcome: str
) -> None:
    call = desk.call(stream=streamed)
    settle(desk.gateway, call, desk.admit(call), Spent(), error)
    assert [entry.outcome for entry in desk.entries()] == [outcome]
    assert desk.left() == (0, 0)


def test_a_greenlet_that_is_killed_while_it_settles_has_closed_the_books(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = gevent.event.Event()

    def wait_for_the_pod(*_: Any) -> None:
        asking.set()
        gevent.sleep(60)

    monkeypatch.setattr(step, "final", wait_for_the_pod)
    call = desk.call(stream=True)
    spent = Spent(upstream="http://pod", outcome="client_gone", prompt_tokens=5, completion_tokens=3)
    settling = gevent.spawn(settle, desk.gateway, call, desk.admit(call), spent)
    assert asking.wait(10)
    settling.kill()
    assert [entry.completion_tokens for entry in desk.entries()] == [3]
    assert desk.left() == (0, 0)


def test_with_redis_gone_the_entry_goes_another_way(desk: Desk, server: Valkey) -> None:
    before, during = desk.call(), desk.call()
    admission = desk.admit(before)
    server.kill()
    settle(desk.gateway, before, admission, Spent(usage=Usage(10, 5), outcome="ok"))
    settle(desk.gateway, during, desk.admit(during), Spent(usage=Usage(10, 5), outcome="ok"))
    assert [entry.id for entry in desk.parts.ledger] == [before.id, during.id]


def test_counts_of_pods_make_the_next_reservation_true(desk: Desk) -> None:
    """The first reserves 45 for the prompt, as nothing is known of the model; the second the 12 that it has."""
    left = []
    for _ in range(2):
        call = desk.call()
        admission = desk.admit(call, Limits(tokens_per_minute=1000))
        assert admission.reservation.tokens is not None
        left.append(admission.reservation.tokens.left)
        settle(desk.gateway, call, admission, Spent(usage=Usage(12, 0), outcome="ok"))
    assert left == [1000 - 45 - 20, 1000 - 12 - 12 - 20]


class TestRefusals:
    def refused(self, desk: Desk, limits: Limits, calls: int = 2, **body: Any) -> ApiError:
        for _ in range(calls - 1):
            desk.admit(desk.call(**body), limits)
        with pytest.raises(ApiError) as caught:
            desk.admit(desk.call(**body), limits)
        return caught.value

    def test_a_limit_of_the_minute_says_when_it_ends(self, desk: Desk) -> None:
        error = self.refused(desk, Limits(1))
        assert isinstance(error, RateLimited)
        assert error.message == "Rate limit reached of the key: 1 requests per minute. Try again in 60 s."
        assert error.headers["Retry-After"] == "60"
        assert error.headers["x-ratelimit-remaining-requests"] == "0"
        assert "x-should-retry" not in error.headers

    def test_a_wait_for_a_slot_is_called_an_estimate(self, desk: Desk) -> None:
        error = self.refused(desk, Limits(concurrent=1))
        assert error.message == "Rate limit reached of the key: 1 concurrent requests. Try again in about 1 s."

    def test_a_budget_says_what_may_help(self, desk: Desk) -> None:
        error = self.refused(desk, Limits(tokens_per_month=100))
        assert isinstance(error, QuotaExceeded)
        assert error.headers["x-should-retry"] == "false"
        assert "a smaller max_tokens may fit" in error.message

    def test_a_call_larger_than_a_budget_is_not_told_to_wait(self, desk: Desk) -> None:
        error = self.refused(desk, Limits(micros_per_day=10), calls=1)
        assert "Retry-After" not in error.headers
        assert "This request may take 85 of them, more than that" in error.message

    def test_a_model_that_is_not_allowed_does_not_exist(self, desk: Desk) -> None:
        with pytest.raises(ModelNotFound, match="does not exist or you do not have access"):
            desk.admit(desk.call(), models=frozenset({"n"}))

    def test_who_may_not_use_models_is_told_so(self, desk: Desk) -> None:
        nobody = Principal("acme", "t1", "key:1", frozenset(), None, LIMITS, Limits(), "salt")
        with pytest.raises(Forbidden):
            admit(desk.gateway, nobody, desk.call())
