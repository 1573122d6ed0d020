"""Attempts by account: how many, when the next, and that both ways of counting count alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.cache import throttle as module
from services.cache.connection import Connection
from services.cache.throttle import Account, Attempts, Throttle

names = count()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def attempts(clock: Clock) -> Attempts:
    return Attempts(clock)


@pytest.fixture
def throttle(connection: Connection) -> Throttle:
    return Throttle(connection)


def fresh(attempts: int = 3, window: float = 60.0) -> Account:
    """An account that no other test knows."""
    return Account(f"test:{next(names)}", attempts, window)


@pytest.fixture(params=["redis", "memory"])
def take(request: pytest.FixtureRequest) -> Callable[[Account], float]:
    """Takes an attempt from one account, counted in Redis or in this process' memory."""
    counter = request.getfixturevalue("throttle" if request.param == "redis" else "attempts")
    return lambda account: counter.take([account])


def test_an_account_has_its_attempts_at_once_and_then_none(take: Callable[[Account], float]) -> None:
    account = fresh(attempts=3, window=60)
    assert [take(account) for _ in range(3)] == [0, 0, 0]
    assert 19.5 < take(account) <= 20


def test_a_refused_attempt_costs_nothing(take: Callable[[Account], float]) -> None:
    account = fresh(attempts=1, window=60)
    take(account)
    first = take(account)
    assert [take(account) <= first for _ in range(10)] == [True] * 10


def test_who_waits_as_told_gets_through(clock: Clock, attempts: Attempts) -> None:
    account = fresh(attempts=4, window=60)
    for _ in range(40):
        wait = attempts.take([account])
        if wait:
            clock.now += wait
            assert attempts.take([account]) == 0


def test_who_waits_as_told_by_redis_gets_through(throttle: Throttle) -> None:
    account = fresh(attempts=2, window=0.4)
    for _ in range(6):
        wait = throttle.take([account])
        if wait:
            time.sleep(wait)
            assert throttle.take([account]) == 0


def test_of_two_accounts_the_one_with_none_left_refuses_and_the_other_is_not_charged(throttle: Throttle) -> None:
    user, address = fresh(attempts=1), fresh(attempts=2)
    assert throttle.take([user, address]) == 0
    assert throttle.take([user, address]) > 0
    assert throttle.take([address]) == 0
    assert throttle.take([address]) > 0


def test_an_attempt_that_is_given_back_can_be_made_again(throttle: Throttle, attempts: Attempts) -> None:
    for counter in (throttle, attempts):
        accounts = [fresh(attempts=1), fresh(attempts=1)]
        for _ in range(5):
            assert counter.take(accounts) == 0
            counter.give_back(accounts)
        assert counter.take(accounts) == 0
        assert counter.take(accounts) > 0


def test_no_more_is_given_back_than_an_account_may_have(throttle: Throttle, attempts: Attempts) -> None:
    for counter in (throttle, attempts):
        account = fresh(attempts=2)
        for _ in range(5):
            counter.give_back([account])
        assert [bool(counter.take([account])) for _ in range(3)] == [False, False, True]


def test_of_many_at_once_no_more_pass_than_are_allowed(throttle: Throttle) -> None:
    account = fresh(attempts=7)
    with ThreadPoolExecutor(16) as pool:
        waits = list(pool.map(lambda _: throttle.take([account]), range(64)))
    assert waits.count(0) == 7


def test_without_redis_the_process_counts_by_itself(clock: Clock) -> None:
    lonely = Throttle(Connection("redis://127.0.0.1:1/0"), clock=clock)
    account = fresh(attempts=2, window=60)
    assert [lonely.take([account]) for _ in range(3)] == [0, 0, 30]
    lonely.give_back([account])
    assert lonely.take([account]) == 0


def test_the_accounts_of_a_process_are_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ACCOUNTS", 5)
    attempts = Attempts(clock)
    for _ in range(50):
        attempts.take([fresh()])
    assert len(attempts._full) == 5


STEPS = st.lists(st.tuples(st.sampled_from([1, 1, 1, -1]), st.integers(0, 1)), max_size=30)


@given(steps=STEPS, most=st.tuples(st.integers(1, 5), st.integers(1, 5)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_the_script_and_its_model_let_the_same_through(
    throttle: Throttle, steps: list[tuple[int, int]], most: tuple[int, int]
) -> None:
    # A window so long that no attempt comes back while the test runs.
    both = [fresh(attempts, window=36_000) for attempts in most]
    model = Attempts(Clock())
    for sign, which in steps:
        accounts = both[which:]
        if sign < 0:
            throttle.give_back(accounts)
            model.give_back(accounts)
        else:
            expected, found = model.take(accounts), throttle.take(accounts)
            assert bool(found) == bool(expected)
            assert found == pytest.approx(expected, abs=5)
