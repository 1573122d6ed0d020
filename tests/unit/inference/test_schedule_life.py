"""The scheduler, driven through random lives of random requests over a memory that remembers what it holds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sequence
from tests.unit.inference.scheduling import finish_step, following, scheduler

STEMS = [[1] * 24, [1, 1, 1, 1, 2] * 5]
"""Beginnings that requests have in common, and that have a beginning in common themselves."""


class Memory:
    """What stands in the KV memory: for each slot of each block, the text whose last token was computed into it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._slots: dict[tuple[int, int], object] = {}

    def compute(self, plan: list[Work], *, right: bool = True) -> None:
        """Writes the step's tokens, or garbage where the step fails, then reads as attention does."""
        for work in plan:
            start = work.sequence.computed
            for position in range(start, start + work.count):
                self._slots[self._slot(work.sequence, position)] = (
                    self._text(work.sequence, position) if right else None
                )
        for work in plan if right else []:
            for position in range(work.sequence.computed + work.count):
                assert self._slots[self._slot(work.sequence, position)] == self._text(work.sequence, position)

    def _slot(self, of: Sequence, position: int) -> tuple[int, int]:
        return of.blocks[position // self._size], position % self._size

    def _text(self, of: Sequence, position: int) -> object:
        return of.salt, of.adapter, tuple(of.ids[: position + 1])


class SchedulerLife(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(2, 16),
        size=st.integers(1, 4),
        max_batch=st.integers(1, 5),
        step_tokens=st.integers(1, 12),
        chunk_tokens=st.integers(1, 8),
        twice_at=st.sampled_from([math.inf, 3.0]),
        cache=st.sampled_from([True, True, True, False]),
    )
    def build(self, **given: int) -> None:
        self.under = scheduler(**given)  # type: ignore[arg-type]
        self.cache = given["cache"]
        self.memory = Memory(self.under.pool.size)
        self.alive: list[Sequence] = []

    @rule(
        stem=st.sampled_from(STEMS),
        length=st.integers(1, 20),
        tail=st.lists(st.integers(0, 2), max_size=3),
        answer=st.integers(1, 12),
        salt=st.sampled_from("abc"),
        adapter=st.sampled_from([None, None, "lora"]),
        weight=st.sampled_from([0.5, 1, 2]),
        priority=st.sampled_from([0, 0, 1, -1]),
        resumed=st.integers(0, 3),
    )
    def arrive(self, stem: list[int], length: int, tail: list[int], answer: int, resumed: int, **whose: object) -> None:
        ids = [*stem[:length], *tail]
        new = Sequence(ids, len(ids), answer, **whose)  # type: ignore[arg-type]
        for _ in range(min(resumed, answer - 1)):
            new.ids.append(following(new.ids))
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
        before = {one: len(one.ids) for one in self.alive}
        fresh = {one for one in self.under.waiting if not one.preemptions}
        generating = {one: one.preemptions for one in self.under.running if one.pending == 1}
        plan = self.under.plan()
        assert bool(plan) == bool(self.alive), "a step does something when there is something to do"
        assert len({work.sequence for work in plan}) == len(plan)
        assert sum(work.count for work in plan) <= self.under.step_tokens
        if any(work.sequence.preemptions == generating.get(work.sequence) for work in plan):
            assert sum(work.count for work in plan if work.sequence.pending > 1) <= self.under.chunk_tokens
        for work in plan:
            one = work.sequence
            assert 1 <= work.count <= one.pending
            assert len(one.blocks) == self.under.pool.blocks_for(len(one.ids))
            assert one not in fresh or one.cached == min(one.computed, one.prompt_length)
            assert self.cache or not one.cached
        self.memory.compute(plan)
        done = finish_step(self.under, plan)
        assert all(len(work.sequence.ids) - before[work.sequence] in (0, 1) for work in plan)
        self.alive = [one for one in self.alive if one not in done]

    @rule()
    def fail(self) -> None:
        """A step lacks memory half-way: what it wrote is worth nothing, and its requests are tried again."""
        plan = self.under.plan()
        self.memory.compute(plan, right=False)
        for work in plan:
            self.under.requeue(work.sequence)

    @rule(blocks=st.integers(1, 3))
    def shrink(self, blocks: int) -> None:
        pool = self.under.pool
        pool.shrink(blocks, keep=max((pool.blocks_for(one.limit) for one in self.alive), default=1))

    @invariant()
    def nobody_is_lost(self) -> None:
        if hasattr(self, "under"):
            known = [*self.under.waiting, *self.under.running]
            assert set(known) == set(self.alive)
            assert len(known) == len(self.alive) == len(self.under.waiting) + len(self.under.running)
            assert len(self.under.running) <= self.under.max_batch
            running = Counter(one.salt for one in self.under.running)
            assert all(self.under.waiting.tenant(one).running == running[one.salt] for one in self.alive)

    @invariant()
    def memory_adds_up(self) -> None:
        if not hasattr(self, "under"):
            return
        pool = self.under.pool
        places: dict[int, list[tuple[Sequence, int]]] = defaultdict(list)
        for one in self.under.running:
            assert len(set(one.blocks)) == len(one.blocks)
            for index, block in enumerate(one.blocks):
                places[block].append((one, index))
        assert len(places) == pool.used
        assert pool.free + pool.used == pool.count
        for block, holders in places.items():
            assert pool.held_by(len(holders), [block]) == 1
            if len(holders) > 1:
                assert all(one.computed >= (index + 1) * pool.size for one, index in holders), "shared and written to"
        assert all(not one.blocks and one.computed == 0 for one in self.under.waiting)

    def teardown(self) -> None:
        """Whatever happened, everybody who is still there gets to the end in bounded time, and no block is lost."""
        if not hasattr(self, "under"):
            return
        bound = 10 + 4 * sum(one.limit + one.max_tokens for one in self.alive) * (len(self.alive) + 1)
        for _ in range(bound):
            if not self.under.busy:
                break
            self.compute()
        assert not self.under.busy
        assert len(set(self.under.pool.take(self.under.pool.count))) == self.under.pool.count


SchedulerLife.TestCase.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_scheduler_life = SchedulerLife.TestCase
