"""Whose request is admitted: priority first, then tenants in turn, some in another's place."""

from __future__ import annotations

import pytest

from tests.unit.inference.scheduling import STEM, scheduler, sequence, step


def test_the_more_urgent_goes_first_whosever_it_is() -> None:
    under = scheduler(max_batch=1)
    patient, urgent = sequence(3, salt="a", priority=1), sequence(3, salt="b", priority=-1)
    under.add(patient)
    under.add(urgent)
    assert [work.sequence for work in step(under)] == [urgent]


def test_the_more_urgent_takes_the_place_of_the_less_urgent() -> None:
    under = scheduler(max_batch=2)
    first, second = sequence(3, 9, priority=1), sequence(3, 9, priority=1)
    under.add(first)
    under.add(second)
    step(under)
    under.add(urgent := sequence(3, 9))
    assert [work.sequence for work in step(under)] == [first, urgent]
    assert second.preemptions == 1


def test_nobody_is_preempted_for_one_who_would_not_fit_even_then() -> None:
    under = scheduler(blocks=8, size=4, max_batch=4)
    rival = sequence(16, 8)
    under.add(rival)
    under.add(patient := sequence(4, 8, priority=1))
    step(under)
    step(under)
    assert patient in under.running
    under.add(large := sequence(20, 8))
    step(under)
    assert large in under.waiting
    assert (rival.preemptions, patient.preemptions) == (0, 0)


def test_what_is_shared_with_a_victim_is_not_counted_as_gained() -> None:
    under = scheduler(blocks=9, size=4, max_batch=4, step_tokens=64)
    rival, patient = sequence(6, 8), sequence(18, 8, stem=STEM, priority=1)
    under.add(rival)
    under.add(patient)
    step(under)
    under.add(large := sequence(28, 8, stem=STEM))
    step(under)
    assert large in under.waiting
    assert patient.preemptions == 0


def test_nobody_is_preempted_for_a_prompt_that_would_not_be_computed_yet() -> None:
    under = scheduler(blocks=256, max_batch=3, step_tokens=64, chunk_tokens=8)
    first, second = sequence(3, 50, salt="a"), sequence(3, 50, salt="a")
    long, longer = sequence(40, salt="b"), sequence(80, salt="c")
    for one in (first, second):
        under.add(one)
    step(under)
    under.add(long)
    step(under)
    under.add(longer)
    while not long.generated:
        assert longer in under.waiting
        step(under)
    step(under)
    assert longer in under.running
    assert second.preemptions == 1


def test_a_tenant_who_comes_anew_takes_the_place_of_the_latest_of_a_flood() -> None:
    under = scheduler(blocks=256, max_batch=4, step_tokens=64)
    flood = [sequence(8, 50, salt="flood") for _ in range(200)]
    for one in flood:
        under.add(one)
    for _ in range(10):
        step(under)
    under.add(light := sequence(8, 5, salt="light"))
    step(under)
    assert light.generated == 1
    assert [one.preemptions for one in flood[:4]] == [0, 0, 0, 1]
    while light in under.running:
        step(under)
    step(under)
    assert flood[3] in under.running, "it has its place again"


def test_a_tenant_who_was_served_more_waits_for_a_place() -> None:
    under = scheduler(blocks=64, max_batch=2, step_tokens=64)
    first, second, greedy = sequence(3, 50, salt="a"), sequence(3, 50, salt="a"), sequence(150, 1, salt="b")
    for one in (first, greedy, second):
        under.add(one)
    while not second.generated:
        step(under)
    under.add(more := sequence(3, salt="b"))
    step(under)
    assert more in under.waiting
    assert second.preemptions == 0


def test_the_only_one_of_a_tenant_is_not_preempted_for_another_tenant() -> None:
    under = scheduler(max_batch=2)
    first, second = sequence(3, 9, salt="a"), sequence(3, 9, salt="b")
    under.add(first)
    under.add(second)
    step(under)
    under.add(third := sequence(3, 9, salt="c"))
    step(under)
    assert third in under.waiting
    assert (first.preemptions, second.preemptions) == (0, 0)


@pytest.mark.parametrize("steps", range(20, 60, 3))
def test_a_flood_of_long_prompts_delays_another_tenants_prompt_by_two_steps_at_most(steps: int) -> None:
    under = scheduler(blocks=2048, size=16, max_batch=16, step_tokens=512, chunk_tokens=64)
    for _ in range(200):
        under.add(sequence(1000, 20, salt="flood"))
    for _ in range(steps):
        step(under)
    under.add(light := sequence(60, 5, salt="light"))
    for _ in range(3):
        step(under)
    assert light.generated
