"""The scheduler, driven through random lives of random requests, and its promises one by one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.inference.engine.blocks import BlockPool
from services.inference.engine.schedule import Scheduler, Work
from services.inference.engine.sequence import Sequence

FRESH = count(1)
STEMS = [[1] * 24, [1, 1, 1, 1, 2] * 5]
"""Beginnings that requests have in common, and that have a beginning in common themselves."""


def sequence(
    prompt: int, answer: int = 4, *, salt: str = "", priority: int = 0, stem: tuple[int, ...] = ()
) -> Sequence:
    """A request of `prompt` tokens, which begin with `stem` and are no other request's after that."""
    ids = [*stem, *([next(FRESH) + 1000] * prompt)][:prompt]
    return Sequence(ids, prompt, answer, salt=salt, priority=priority)


def scheduler(
    *,
    blocks: int = 8,
    size: int = 4,
    max_batch: int = 4,
    step_tokens: int = 16,
    chunk_tokens: int = 16,
    twice_at: float = math.inf,
    cache: bool = True,
) -> Scheduler:
    pool, sizes = BlockPool(blocks, size), {"max_batch": max_batch, "step_tokens": step_tokens}
    return Scheduler(pool, **sizes, chunk_tokens=chunk_tokens, twice_at=twice_at, prefix_cache=cache)


def following(ids: list[int]) -> int:
    """The token after `ids`: like a model's, given by all of them."""
    return sum(ids) % 3


def finish_step(over: Scheduler, plan: list[Work]) -> list[Sequence]:
    """The rest of a step as the engine does it; a finished sequence leaves, and is returned."""
    sampling = [work.sequence for work in plan if work.samples]
    over.commit(plan, [following(one.ids) for one in sampling])
    done = [one for one in sampling if one.generated >= one.max_tokens]
    for one in done:
        over.remove(one)
    return done


def step(over: Scheduler) -> list[Work]:
    plan = over.plan()
    finish_step(over, plan)
    return plan


def run(over: Scheduler, *sequences: Sequence) -> None:
    """Adds the sequences and steps until nothing is left to do."""
    for one in sequences:
        over.add(one)
    while over.busy:
        step(over)


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


class TestStep:
    def test_a_request_joins_while_another_runs(self) -> None:
        under = scheduler()
        first, second = sequence(3), sequence(3)
        under.add(first)
        step(under)
        under.add(second)
        assert {work.sequence for work in under.plan()} == {first, second}

    def test_a_prompt_is_computed_in_chunks_of_the_step_while_nobody_generates(self) -> None:
        under = scheduler(blocks=64, max_batch=1, step_tokens=8, chunk_tokens=4)
        under.add(sequence(20))
        assert [step(under)[0].count for _ in range(3)] == [8, 8, 4]

    def test_a_prompt_is_computed_in_small_chunks_while_others_generate(self) -> None:
        under = scheduler(blocks=64, step_tokens=64, chunk_tokens=8)
        first, long = sequence(3, 20), sequence(40)
        under.add(first)
        step(under)
        under.add(long)
        steps = [{work.sequence: work.count for work in step(under)} for _ in range(5)]
        assert steps == [{first: 1, long: 8}] * 5
        assert long.generated == 1

    def test_chunks_shrink_far_inside_a_long_prompt(self) -> None:
        under = scheduler(blocks=128, size=4, step_tokens=64, chunk_tokens=16, twice_at=32)
        first, long = sequence(3, 200), sequence(300)
        under.add(first)
        step(under)
        under.add(long)
        counts = []
        while long.pending > 1:
            counts += [work.count for work in step(under) if work.sequence is long]
        assert counts[:3] == [16, 8, 8]
        assert counts[-1] <= 4

    def test_the_first_token_of_a_newcomer_does_not_wait_for_tokens_of_others(self) -> None:
        under = scheduler(blocks=64, step_tokens=64, chunk_tokens=16)
        greedy = [sequence(3, 20, salt="greedy") for _ in range(3)]
        for one in greedy:
            under.add(one)
        step(under)
        light = sequence(10, 20, salt="light")
        under.add(light)
        assert [work.sequence for work in step(under)] == [light]
        assert {work.sequence for work in step(under)} == {light, *greedy}

    def test_a_newcomer_does_not_wait_for_what_is_left_of_a_greedy_tenants_prompt(self) -> None:
        under = scheduler(blocks=64, max_batch=8, step_tokens=64, chunk_tokens=12)
        under.add(sequence(3, 20, salt="greedy"))
        step(under)
        under.add(sequence(16, 20, salt="greedy"))
        step(under)
        light = sequence(10, 20, salt="light")
        under.add(light)
        assert step(under)[0].sequence is light
        assert light.generated == 1

    def test_newcomers_that_keep_coming_take_no_more_than_every_second_step_from_others(self) -> None:
        under = scheduler(blocks=64, step_tokens=64, chunk_tokens=16)
        steady = sequence(3, 20, salt="steady")
        under.add(steady)
        step(under)
        steps = []
        for number in range(8):
            under.add(sequence(5, 1, salt=f"tenant-{number}"))
            steps.append(steady in {work.sequence for work in step(under)})
        assert steps == [False, True] * 4

    def test_chunks_end_where_blocks_end(self) -> None:
        under = scheduler(blocks=64, size=4, max_batch=2, step_tokens=64, chunk_tokens=10)
        under.add(sequence(3, 20))
        step(under)
        under.add(sequence(30))
        assert [step(under)[-1].count for _ in range(4)] == [8, 8, 8, 6]

    def test_what_is_left_of_a_budget_is_not_split_below_a_block(self) -> None:
        under = scheduler(blocks=64, size=4, step_tokens=16)
        first, second = sequence(14), sequence(20)
        under.add(first)
        under.add(second)
        assert {work.sequence: work.count for work in step(under)} == {first: 14}

    def test_a_short_prompt_passes_a_long_one_that_has_begun(self) -> None:
        under = scheduler(blocks=64, step_tokens=8)
        long, short = sequence(100), sequence(8)
        under.add(long)
        step(under)
        under.add(short)
        step(under)
        assert short.generated == 1

    def test_a_prompt_that_is_mostly_cached_is_a_short_one(self) -> None:
        under = scheduler(blocks=64, step_tokens=8)
        run(under, sequence(40, stem=STEM))
        under.add(sequence(30))
        step(under)
        under.add(cached := sequence(46, stem=STEM))
        step(under)
        assert cached.generated == 1

    def test_an_urgent_prompt_goes_before_a_shorter_one(self) -> None:
        under = scheduler(blocks=64, step_tokens=8)
        under.add(sequence(20))
        step(under)
        under.add(urgent := sequence(40, priority=-1))
        for _ in range(5):
            step(under)
        assert urgent.generated == 1

    def test_a_long_prompt_is_not_stopped_by_short_ones_that_keep_coming(self) -> None:
        under = scheduler(blocks=256, max_batch=4, step_tokens=8)
        under.add(long := sequence(80, 1))
        begun = ""
        while not long.generated:
            begun += "L" if [work.sequence for work in step(under)] == [long] else "s"
            under.add(sequence(7, 1))
        assert begun == "LssL" + "sssL" * 8

    def test_every_runner_gets_a_token_even_under_a_tiny_budget(self) -> None:
        under = scheduler(blocks=16, max_batch=4, step_tokens=1)
        for _ in range(4):
            under.add(sequence(1, 3))
        for _ in range(4):
            step(under)
        assert not under.busy


class TestMemory:
    def test_admission_waits_for_memory(self) -> None:
        under = scheduler(blocks=4, size=4)
        first, second = sequence(12, 2), sequence(8)
        under.add(first)
        under.add(second)
        step(under)
        assert list(under.waiting) == [second]
        step(under)
        step(under)
        assert second in under.running

    def test_admission_leaves_a_block_for_each_who_runs_to_grow_into(self) -> None:
        under = scheduler(blocks=4, size=4)
        first, second = sequence(4, 5), sequence(8, 1)
        under.add(first)
        under.add(second)
        assert [work.sequence for work in step(under)] == [first, second]
        under.add(third := sequence(8, 1))
        step(under)
        assert third in under.waiting, "2 blocks for it, and 1 for the first, of 2 that are free"

    def test_a_small_request_does_not_pass_a_large_one_that_waits_for_memory(self) -> None:
        under = scheduler(blocks=4, size=4)
        for one in (sequence(12, 4), large := sequence(12), small := sequence(1)):
            under.add(one)
        step(under)
        assert list(under.waiting) == [large, small]

    def test_a_large_request_is_not_starved_by_small_ones_that_keep_coming(self) -> None:
        under = scheduler(blocks=8, size=4, max_batch=4)
        under.add(sequence(2, 8))
        step(under)
        under.add(large := sequence(28, 4))
        for _ in range(30):
            under.add(sequence(2, 8))
            step(under)
        assert large.generated == 4

    def test_the_newest_gives_way_when_memory_runs_out_and_comes_back_whole(self) -> None:
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

    def test_the_less_urgent_gives_way_before_the_newest(self) -> None:
        under = scheduler(blocks=4, size=2, max_batch=2)
        patient, urgent = sequence(2, 5, priority=1), sequence(2, 5, priority=0)
        under.add(patient)
        step(under)
        under.add(urgent)
        while under.busy:
            step(under)
        assert (patient.preemptions, urgent.preemptions) == (1, 0)

    def test_a_requeued_sequence_waits_at_the_front_with_nothing_computed(self) -> None:
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
    def test_a_weight_is_a_positive_number(self, weight: float) -> None:
        one = sequence(3)
        one.weight = weight
        with pytest.raises(ValueError, match="weight"):
            scheduler().add(one)

    def test_a_request_larger_than_the_pool_is_refused(self) -> None:
        with pytest.raises(ValueError, match="1 to 32 tokens"):
            scheduler(blocks=8, size=4).add(sequence(32, 2))

    def test_removing_who_is_not_here_is_refused(self) -> None:
        under = scheduler()
        under.add(sequence(3))
        with pytest.raises(ValueError, match="not wait"):
            under.remove(sequence(3))


STEM = tuple(range(100, 140))


class TestPrefixCache:
    def test_a_common_beginning_is_computed_once_and_its_blocks_are_shared(self) -> None:
        under = scheduler(blocks=64, size=4, step_tokens=64)
        first, second = sequence(50, 9, stem=STEM), sequence(50, stem=STEM)
        under.add(first)
        step(under)
        under.add(second)
        step(under)
        assert second.cached == 40
        assert second.blocks[:10] == first.blocks[:10]
        assert not set(second.blocks[10:]) & set(first.blocks)

    def test_the_last_token_of_a_prompt_is_always_computed(self) -> None:
        under = scheduler(blocks=64, size=4, step_tokens=64)
        run(under, sequence(40, stem=STEM))
        again = sequence(40, 1, stem=STEM)
        under.add(again)
        assert [work.count for work in step(under)] == [4]
        assert (again.cached, again.generated) == (36, 1)

    def test_an_answer_is_found_by_the_next_turn_of_the_conversation(self) -> None:
        under = scheduler(blocks=64, size=4, step_tokens=64)
        run(under, first := sequence(10, 11, stem=STEM))
        ids = [*first.ids, 5, 6, 7]
        under.add(second := Sequence(ids, len(ids), 4))
        step(under)
        assert second.cached == 20

    def test_tenants_and_adapters_do_not_share(self) -> None:
        under = scheduler(blocks=64, size=4, step_tokens=64)
        run(under, sequence(40, salt="a", stem=STEM))
        other, adapted = sequence(40, salt="b", stem=STEM), sequence(40, salt="a", stem=STEM)
        adapted.adapter = "lora"
        run(under, other, adapted)
        assert other.cached == adapted.cached == 0

    def test_requests_that_come_together_have_a_common_beginning_computed_once(self) -> None:
        under = scheduler(blocks=600, size=16, max_batch=16, step_tokens=2048)
        stem = tuple(range(1000))
        together = [sequence(1060, 1, stem=stem) for _ in range(16)]
        for one in together:
            under.add(one)
        computed = 0
        while under.busy:
            computed += sum(work.count for work in step(under))
        assert computed == 992 + 16 * 68  # 62 full blocks, and what follows them

    def test_who_waits_for_a_beginning_lets_others_pass_but_keeps_a_place(self) -> None:
        under = scheduler(blocks=64, size=4, max_batch=3, step_tokens=64)
        first, same, other, late = sequence(44, stem=STEM), sequence(44, stem=STEM), sequence(4), sequence(4)
        for one in (first, same, other, late):
            under.add(one)
        assert [work.sequence for work in step(under)] == [first, other]
        assert same in {work.sequence for work in step(under)}
        assert late in under.waiting

    def test_a_prompt_that_has_begun_takes_over_what_others_computed_meanwhile(self) -> None:
        under = scheduler(blocks=64, size=4, step_tokens=16)
        long = sequence(100, stem=STEM)
        under.add(long)
        step(under)
        under.add(short := sequence(44, 9, stem=STEM))  # passes, and computes what the long one needs too
        computed: Counter[Sequence] = Counter()
        while not long.generated:
            plan = under.plan()
            computed.update({work.sequence: work.count for work in plan})
            finish_step(under, plan)
        assert (short.cached, computed[long]) == (16, 100 - 16 - 24)
        assert long.blocks[:10] == short.blocks[:10]

    def test_a_preempted_sequence_finds_its_blocks_again(self) -> None:
        under = scheduler(blocks=64, size=4, step_tokens=64)
        one = sequence(30, 9)
        under.add(one)
        step(under)
        under.requeue(one)
        assert [work.count for work in step(under)] == [31 - 28]
        assert one.cached == 0, "spared at the first admission: nothing"

    def test_cached_blocks_make_way_for_who_needs_memory(self) -> None:
        under = scheduler(blocks=8, size=4, step_tokens=64)
        run(under, sequence(28, stem=STEM))
        run(under, sequence(28))
        assert under.pool.used == 0
        under.add(again := sequence(28, stem=STEM))
        step(under)
        assert again.cached < 24

    def test_without_the_cache_everything_is_computed(self) -> None:
        under = scheduler(blocks=64, size=4, step_tokens=128, cache=False)
        under.add(sequence(40, stem=STEM))
        under.add(sequence(40, stem=STEM))
        assert [work.count for work in step(under)] == [40, 40]


class TestTurns:
    def test_the_more_urgent_goes_first_whosever_it_is(self) -> None:
        under = scheduler(max_batch=1)
        patient, urgent = sequence(3, salt="a", priority=1), sequence(3, salt="b", priority=-1)
        under.add(patient)
        under.add(urgent)
        assert [work.sequence for work in step(under)] == [urgent]

    def test_the_more_urgent_takes_the_place_of_the_less_urgent(self) -> None:
        under = scheduler(max_batch=2)
        first, second = sequence(3, 9, priority=1), sequence(3, 9, priority=1)
        under.add(first)
        under.add(second)
        step(under)
        under.add(urgent := sequence(3, 9))
        assert [work.sequence for work in step(under)] == [first, urgent]
        assert second.preemptions == 1

    def test_nobody_is_preempted_for_one_who_would_not_fit_even_then(self) -> None:
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

    def test_what_is_shared_with_a_victim_is_not_counted_as_gained(self) -> None:
        under = scheduler(blocks=9, size=4, max_batch=4, step_tokens=64)
        rival, patient = sequence(6, 8), sequence(18, 8, stem=STEM, priority=1)
        under.add(rival)
        under.add(patient)
        step(under)
        under.add(large := sequence(28, 8, stem=STEM))
        step(under)
        assert large in under.waiting
        assert patient.preemptions == 0

    def test_nobody_is_preempted_for_a_prompt_that_would_not_be_computed_yet(self) -> None:
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

    def test_a_tenant_who_comes_anew_takes_the_place_of_the_latest_of_a_flood(self) -> None:
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

    def test_a_tenant_who_was_served_more_waits_for_a_place(self) -> None:
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

    def test_the_only_one_of_a_tenant_is_not_preempted_for_another_tenant(self) -> None:
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
    def test_a_flood_of_long_prompts_delays_another_tenants_prompt_by_two_steps_at_most(self, steps: int) -> None:
        under = scheduler(blocks=2048, size=16, max_batch=16, step_tokens=512, chunk_tokens=64)
        for _ in range(200):
            under.add(sequence(1000, 20, salt="flood"))
        for _ in range(steps):
            step(under)
        under.add(light := sequence(60, 5, salt="light"))
        for _ in range(3):
            step(under)
        assert light.generated
