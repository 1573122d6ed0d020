"""What the scheduler takes over from the prefix cache, and what it computes once for several requests."""

from __future__ import annotations

from collections import Counter

from services.inference.engine.sequence import Sequence
from tests.unit.inference.scheduling import STEM, finish_step, run, scheduler, sequence, step


def test_a_common_beginning_is_computed_once_and_its_blocks_are_shared() -> None:
    under = scheduler(blocks=64, size=4, step_tokens=64)
    first, second = sequence(50, 9, stem=STEM), sequence(50, stem=STEM)
    under.add(first)
    step(under)
    under.add(second)
    step(under)
    assert second.cached == 40
    assert second.blocks[:10] == first.blocks[:10]
    assert not set(second.blocks[10:]) & set(first.blocks)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    under = scheduler(blocks=64, size=4, step_tokens=64)
    run(under, sequence(40, stem=STEM))
    again = sequence(40, 1, stem=STEM)
    under.add(again)
    assert [work.count for work in step(under)] == [4]
    assert (again.cached, again.generated) == (36, 1)


def test_an_answer_is_found_by_the_next_turn_of_the_conversation() -> None:
    under = scheduler(blocks=64, size=4, step_tokens=64)
    run(under, first := sequence(10, 11, stem=STEM))
    ids = [*first.ids, 5, 6, 7]
    under.add(second := Sequence(ids, len(ids), 4))
    step(under)
    assert second.cached == 20


def test_tenants_and_adapters_do_not_share() -> None:
    under = scheduler(blocks=64, size=4, step_tokens=64)
    run(under, sequence(40, salt="a", stem=STEM))
    other, adapted = sequence(40, salt="b", stem=STEM), sequence(40, salt="a", stem=STEM)
    adapted.adapter = "lora"
    run(under, other, adapted)
    assert other.cached == adapted.cached == 0


def test_requests_that_come_together_have_a_common_beginning_computed_once() -> None:
    under = scheduler(blocks=600, size=16, max_batch=16, step_tokens=2048)
    stem = tuple(range(1000))
    together = [sequence(1060, 1, stem=stem) for _ in range(16)]
    for one in together:
        under.add(one)
    computed = 0
    while under.busy:
        computed += sum(work.count for work in step(under))
    assert computed == 992 + 16 * 68  # 62 full blocks, and what follows them


def test_who_waits_for_a_beginning_lets_others_pass_but_keeps_a_place() -> None:
    under = scheduler(blocks=64, size=4, max_batch=3, step_tokens=64)
    first, same, other, late = sequence(44, stem=STEM), sequence(44, stem=STEM), sequence(4), sequence(4)
    for one in (first, same, other, late):
        under.add(one)
    assert [work.sequence for work in step(under)] == [first, other]
    assert same in {work.sequence for work in step(under)}
    assert late in under.waiting


def test_a_prompt_that_has_begun_takes_over_what_others_computed_meanwhile() -> None:
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


def test_a_preempted_sequence_finds_its_blocks_again() -> None:
    under = scheduler(blocks=64, size=4, step_tokens=64)
    one = sequence(30, 9)
    under.add(one)
    step(under)
    under.requeue(one)
    assert [work.count for work in step(under)] == [31 - 28]
    assert one.cached == 0, "spared at the first admission: nothing"


def test_cached_blocks_make_way_for_who_needs_memory() -> None:
    under = scheduler(blocks=8, size=4, step_tokens=64)
    run(under, sequence(28, stem=STEM))
    run(under, sequence(28))
    assert under.pool.used == 0
    under.add(again := sequence(28, stem=STEM))
    step(under)
    assert again.cached < 24


def test_without_the_cache_everything_is_computed() -> None:
    under = scheduler(blocks=64, size=4, step_tokens=128, cache=False)
    under.add(sequence(40, stem=STEM))
    under.add(sequence(40, stem=STEM))
    assert [work.count for work in step(under)] == [40, 40]
