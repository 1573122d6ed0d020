"""The scheduler, driven through random lives of random requests, and its promises one by one."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.inference.engine.blocks import BlockPool
from services.inference.engine.schedule import Scheduler, Work
from services.inference.engine.sequence import Sequence


def sequence(prompt: int, answer: int = 4) -> Sequence:
    return Sequence(list(range(prompt)), prompt, answer)


def scheduler(*, blocks: int = 8, size: int = 4, max_batch: int = 4, step_tokens: int = 16) -> Scheduler:
    return Scheduler(BlockPool(blocks, size), max_batch=max_batch, step_tokens=step_tokens)


def step(over: Scheduler) -> list[Work]:
    """One step as the engine does it; a finished sequence leaves."""
    plan = over.plan()
    sampling = [work.sequence for work in plan if work.samples]
    over.commit(plan, [7] * len(sampling))
    for done in sampling:
        if done.generated >= done.max_tokens:
            over.remove(done)
    return plan


class SchedulerLife(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(2, 10), size=st.integers(1, 4), max_batch=st.integers(1, 5), step_tokens=st.integers(1, 12)
    )
    def build(self, blocks: int, size: int, max_batch: int, step_tokens: int) -> None:
        self.under = scheduler(blocks=blocks, size=size, max_batch=max_batch, step_tokens=step_tokens)
        self.alive: list[Sequence] = []

    @rule(prompt=st.integers(1, 20), answer=st.integers(1, 12))
    def arrive(self, prompt: int, answer: int) -> None:
        new = sequence(prompt, answer)
        if new.limit > self.under.pool.tokens:
            with pytest.raises(ValueError, match="tokens"):
                self.under.add(new)
        else:
            self.under.add(new)
            self.alive.append(new)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        gone = self.alive.pop(data.draw(st.integers(0, len(self.alive) - 1)))
        self.under.remove(gone)
        assert gone.blocks == []

    @rule()
    def compute(self) -> None:
        before = {seq: len(seq.ids) for seq in self.alive}
        plan = step(self.under)
        assert bool(plan) == bool(self.alive), "a step does something when there is something to do"
        assert sum(work.count for work in plan) <= self.under.step_tokens
        assert len({work.sequence for work in plan}) == len(plan)
        for work in plan:
            held = work.sequence.blocks
            assert not held or len(held) * self.under.pool.size >= work.sequence.computed
            assert len(work.sequence.ids) - before[work.sequence] in (0, 1)
        self.alive = [seq for seq in self.alive if seq.generated < seq.max_tokens]

    @invariant()
    def nobody_is_lost(self) -> None:
        if hasattr(self, "under"):
            known = [*self.under.waiting, *self.under.running]
            assert set(known) == set(self.alive)
            assert len(known) == len(self.alive)

    @invariant()
    def memory_adds_up(self) -> None:
        if hasattr(self, "under"):
            pool = self.under.pool
            held = [block for seq in self.under.running for block in seq.blocks]
            assert len(held) == len(set(held)) == pool.used
            assert pool.free + pool.used == pool.count
            assert all(not seq.blocks and seq.computed == 0 for seq in self.under.waiting)
            assert len(self.under.running) <= self.under.max_batch

    def teardown(self) -> None:
        """Whatever happened, everybody who is still there gets to the end in bounded time."""
        if not hasattr(self, "under"):
            return
        bound = 10 + 4 * sum(seq.limit + seq.max_tokens for seq in self.alive) * (len(self.alive) + 1)
        for _ in range(bound):
            if not self.under.busy:
                break
            step(self.under)
        assert not self.under.busy
        assert self.under.pool.used == 0


SchedulerLife.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_scheduler_life = SchedulerLife.TestCase


def test_a_request_joins_while_another_runs() -> None:
    under = scheduler()
    first, second = sequence(3), sequence(3)
    under.add(first)
    step(under)
    under.add(second)
    assert {work.sequence for work in under.plan()} == {first, second}


def test_a_long_prompt_does_not_stall_who_generates() -> None:
    under = scheduler(blocks=64, step_tokens=8)
    first, long = sequence(3, 20), sequence(40)
    under.add(first)
    step(under)
    under.add(long)
    generated = first.generated
    for _ in range(6):
        step(under)
    assert first.generated == generated + 6
    assert long.generated == 1


def test_a_prompt_is_computed_in_chunks_of_the_budget() -> None:
    under = scheduler(blocks=64, max_batch=1, step_tokens=8)
    under.add(sequence(20))
    assert [step(under)[0].count for _ in range(3)] == [8, 8, 4]


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


def test_a_small_request_does_not_pass_a_large_one() -> None:
    under = scheduler(blocks=4, size=4)
    for one in (sequence(12, 4), large := sequence(12), small := sequence(1)):
        under.add(one)
    step(under)
    assert list(under.waiting) == [large, small]


def test_the_newest_gives_way_when_memory_runs_out_and_comes_back_whole() -> None:
    under = scheduler(blocks=4, size=2, max_batch=2)
    old, new = sequence(3, 5), sequence(3, 5)
    under.add(old)
    under.add(new)
    while not new.preemptions:
        step(under)
    assert new in under.waiting
    kept = list(new.ids)
    assert new.computed == 0
    while old.generated < old.max_tokens:
        step(under)
    while under.busy:
        step(under)
    assert new.ids[: len(kept)] == kept
    assert new.generated == 5
    assert old.preemptions == 0


def test_every_runner_gets_a_token_even_under_a_tiny_budget() -> None:
    under = scheduler(blocks=16, max_batch=4, step_tokens=1)
    for _ in range(4):
        under.add(sequence(1, 3))
    for _ in range(4):
        step(under)
    assert not under.busy


def test_a_request_larger_than_the_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 32 tokens"):
        scheduler(blocks=8, size=4).add(sequence(32, 2))
