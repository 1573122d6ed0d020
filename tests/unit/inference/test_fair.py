"""Fairness between tenants: the queue's own rules, and with the scheduler that charges it the bound on who got what."""

from __future__ import annotations

from collections import defaultdict
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.engine import fair
from services.inference.engine.blocks import BlockPool
from services.inference.engine.fair import FairQueue
from services.inference.engine.schedule import Scheduler
from services.inference.engine.sequence import Sequence

LIMIT = 40
"""Tokens of the longest request here."""
FRESH = count()


def request(salt: str, *, prompt: int = 4, answer: int = 4, weight: float = 1.0, priority: int = 0) -> Sequence:
    return Sequence([next(FRESH)] * prompt, prompt, answer, salt=salt, weight=weight, priority=priority)


def waiting(*sequences: Sequence) -> FairQueue:
    queue = FairQueue()
    for sequence in sequences:
        queue.push(sequence)
    return queue


def order(queue: FairQueue) -> list[Sequence]:
    """All who wait, as they go when each costs what it has tokens."""
    gone = []
    while head := queue.head():
        queue.start(head)
        queue.charge(head, len(head.ids))
        gone.append(head)
    return gone


def test_tenants_take_turns_however_many_requests_they_have() -> None:
    flood = [request("a") for _ in range(5)]
    light = [request("b") for _ in range(2)]
    assert order(waiting(*flood, *light)) == [flood[0], light[0], flood[1], light[1], *flood[2:]]


def test_a_long_request_counts_for_several_short_ones() -> None:
    long, after = request("a", prompt=12), request("a")
    short = [request("b") for _ in range(4)]
    assert order(waiting(long, after, *short)) == [long, *short[:3], after, short[3]]


def test_a_tenant_of_twice_the_weight_gets_twice_as_much() -> None:
    heavy = [request("a", weight=2) for _ in range(4)]
    plain = [request("b", prompt=5) for _ in range(2)]
    assert order(waiting(*heavy, *plain)) == [heavy[0], plain[0], heavy[1], heavy[2], plain[1], heavy[3]]


def test_priority_goes_before_fairness_and_arrival() -> None:
    first, second, urgent = request("a"), request("a"), request("a", priority=-1)
    other = request("b", priority=1)
    assert order(waiting(other, first, second, urgent)) == [urgent, first, second, other]


def test_who_was_away_has_no_credit() -> None:
    queue = waiting(busy := request("a", prompt=100))
    queue.start(busy)
    queue.charge(busy, 100)
    for sequence in (mine := [request("a") for _ in range(3)]) + (theirs := [request("b") for _ in range(3)]):
        queue.push(sequence)
    assert order(queue) == [theirs[0], mine[0], theirs[1], mine[1], theirs[2], mine[2]]


def test_a_sequence_that_comes_back_waits_where_it_waited() -> None:
    first, second = request("a"), request("a")
    queue = waiting(first, second)
    queue.start(first)
    queue.stop(first)
    queue.push(first)
    assert list(queue) == [first, second]
    assert len(queue) == 2


def test_those_passed_over_are_left_out() -> None:
    first, second, other = request("a"), request("a"), request("b")
    queue = waiting(first, second, other)
    assert queue.head({first, other}) is second
    assert queue.head({first, second, other}) is None


def test_who_does_not_wait_cannot_be_removed() -> None:
    queue = waiting(request("a"))
    with pytest.raises(ValueError, match="not wait"):
        queue.remove(request("a"))
    with pytest.raises(ValueError, match="not wait"):
        queue.remove(request("b"))


def test_tenants_long_gone_are_forgotten_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair, "REMEMBERED", 10)
    queue = FairQueue()
    for number in range(100):
        queue.push(one := request(str(number)))
        queue.start(one)
        queue.charge(one, 4)
        queue.stop(one)
    assert len(queue._tenants) <= 11
    queue.push(back := request("0"))
    queue.push(new := request("x"))
    assert order(queue) == [back, new]


def test_a_tenant_who_was_served_more_than_others_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair, "REMEMBERED", 10)
    queue = waiting(greedy := request("greedy"), patient := request("patient"))
    queue.start(greedy)
    queue.charge(greedy, 1000)
    queue.stop(greedy)
    for number in range(100):
        queue.push(one := request(str(number)))
        queue.remove(one)
    queue.push(again := request("greedy"))
    queue.push(new := request("x"))
    assert len(queue._tenants) <= 12
    assert order(queue) == [patient, new, again]


class Load:
    """A scheduler with enough memory, and what each tenant was served, counted here by the tokens computed."""

    def __init__(self, *, max_batch: int, step_tokens: int, chunk_tokens: int) -> None:
        pool = BlockPool(max_batch * LIMIT, 4)
        self.under = Scheduler(pool, max_batch=max_batch, step_tokens=step_tokens, chunk_tokens=chunk_tokens)
        self.served: dict[str, float] = defaultdict(float)
        self.arrived: dict[str, count[int]] = defaultdict(count)

    def step(self) -> None:
        plan = self.under.plan()
        sampled = [work.sequence for work in plan if work.samples]
        for work in plan:
            self.served[work.sequence.salt] += (work.count + work.samples) / work.sequence.weight
        self.under.commit(plan, [0] * len(sampled))
        for one in sampled:
            if one.generated >= one.max_tokens:
                self.under.remove(one)


sizes = st.tuples(st.integers(1, LIMIT // 2), st.integers(1, LIMIT // 2))
limits = st.fixed_dictionaries(
    {"max_batch": st.integers(1, 6), "step_tokens": st.integers(1, 32), "chunk_tokens": st.integers(1, 16)}
)


@given(
    limits=limits, sizes=st.lists(sizes, min_size=2, max_size=12), weights=st.tuples(*[st.sampled_from([1, 2, 4])] * 2)
)
@settings(max_examples=60, deadline=None)
def test_two_tenants_who_always_have_requests_waiting_are_served_alike(
    limits: dict[str, int], sizes: list[tuple[int, int]], weights: tuple[int, int]
) -> None:
    load = Load(**limits)
    kinds = {"a": (sizes[: len(sizes) // 2], weights[0]), "b": (sizes[len(sizes) // 2 :], weights[1])}
    # One runs ahead of the other by what it was admitted for at most: a full batch, a generated token costing two.
    bound = limits["max_batch"] * 2 * LIMIT / min(weights)
    for _ in range(400):
        for salt, (shapes, weight) in kinds.items():
            while sum(one.salt == salt for one in load.under.waiting) <= limits["max_batch"]:
                prompt, answer = shapes[next(load.arrived[salt]) % len(shapes)]
                load.under.add(request(salt, prompt=prompt, answer=answer, weight=weight))
        load.step()
        assert abs(load.served["a"] - load.served["b"]) <= bound
    assert load.served["a"] > bound / 10, "the bound says something"


@given(
    limits=limits,
    arrivals=st.lists(st.tuples(st.sampled_from("abc"), sizes), min_size=1, max_size=12),
    mine=st.tuples(st.sampled_from("abcd"), sizes),
    before=st.integers(0, 60),
)
@settings(max_examples=60, deadline=None)
def test_nobody_starves_while_others_keep_coming(
    limits: dict[str, int],
    arrivals: list[tuple[str, tuple[int, int]]],
    mine: tuple[str, tuple[int, int]],
    before: int,
) -> None:
    """All the time each tenant has a request waiting, of every size, and one request gets through all the same."""
    load = Load(**limits)
    salt, (prompt, answer) = mine
    one = request(salt, prompt=prompt, answer=answer)
    for number in range(3000):
        if number == before:
            load.under.add(one)
        for other, (other_prompt, other_answer) in arrivals:
            if sum(waiting.salt == other for waiting in load.under.waiting) < 3:
                load.under.add(request(other, prompt=other_prompt, answer=other_answer))
        load.step()
        if one.generated == answer:
            break
    assert one.generated == answer
