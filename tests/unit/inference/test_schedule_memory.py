"""Who is admitted when memory is short, and who gives way when it runs out."""

from __future__ import annotations

import pytest

from tests.unit.inference.scheduling import scheduler, sequence, step


def test_admission_waits_for_memory() -> None:
    under = scheduler(blocks=4, size=4)
    first, second = sequence(12, 2), sequence(8)
    under.add(first)
    under.add(second)
    step(under)
    assert list(under.waiting) == [second]
    step(under)
    step(under)
    assert second in under.running


def test_admission_leaves_a_block_for_each_who_runs_to_grow_into() -> None:
    under = scheduler(blocks=4, size=4)
    first, second = sequence(4, 5), sequence(8, 1)
    under.add(first)
    under.add(second)
    assert [work.sequence for work in step(under)] == [first, second]
    under.add(third := sequence(8, 1))
    step(under)
    assert third in under.waiting, "2 blocks for it, and 1 for the first, of 2 that are free"


def test_a_small_request_does_not_pass_a_large_one_that_waits_for_memory() -> None:
    under = scheduler(blocks=4, size=4)
    for one in (sequence(12, 4), large := sequence(12), small := sequence(1)):
        under.add(one)
    step(under)
    assert list(under.waiting) == [large, small]


def test_a_large_request_is_not_starved_by_small_ones_that_keep_coming() -> None:
    under = scheduler(blocks=8, size=4, max_batch=4)
    under.add(sequence(2, 8))
    step(under)
    under.add(large := sequence(28, 4))
    for _ in range(30):
        under.add(sequence(2, 8))
        step(under)
    assert large.generated == 4


def test_the_newest_gives_way_when_memory_runs_out_and_comes_back_whole() -> None:
    under = scheduler(blocks=4, size=2, max_batch=2)
    old, new = sequence(2, 5), sequence(2, 5)
    under.add(old)
    under.add(new)
    for _ in range(4):
        step(under)
    assert (old.preemptions, new.preemptions) == (0, 1)
    assert new in under.waiting
    kept = list(new.ids)
    assert new.computed == 0
    while under.busy:
        step(under)
    assert new.ids[: len(kept)] == kept
    assert new.generated == 5
    assert old.preemptions == 0


def test_the_less_urgent_gives_way_before_the_newest() -> None:
    under = scheduler(blocks=4, size=2, max_batch=2)
    patient, urgent = sequence(2, 5, priority=1), sequence(2, 5, priority=0)
    under.add(patient)
    step(under)
    under.add(urgent)
    while under.busy:
        step(under)
    assert (patient.preemptions, urgent.preemptions) == (1, 0)


def test_a_requeued_sequence_waits_at_the_front_with_nothing_computed() -> None:
    under = scheduler(max_batch=1)
    first, second = sequence(3), sequence(3)
    under.add(first)
    under.add(second)
    step(under)
    under.plan()
    under.requeue(first)
    assert (first.blocks, first.computed, first.preemptions, under.pool.used) == ([], 0, 1, 0)
    assert [work.sequence for work in step(under)] == [first]


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_is_a_positive_number(weight: float) -> None:
    one = sequence(3)
    one.weight = weight
    with pytest.raises(ValueError, match="weight"):
        scheduler().add(one)


def test_a_request_larger_than_the_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 32 tokens"):
        scheduler(blocks=8, size=4).add(sequence(32, 2))


def test_removing_who_is_not_here_is_refused() -> None:
    under = scheduler()
    under.add(sequence(3))
    with pytest.raises(ValueError, match="not wait"):
        under.remove(sequence(3))
