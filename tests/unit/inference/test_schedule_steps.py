"""What one step computes: whose tokens, prompts in which chunks, in which order."""

from __future__ import annotations

from tests.unit.inference.scheduling import STEM, run, scheduler, sequence, step


def test_a_request_joins_while_another_runs() -> None:
    under = scheduler()
    first, second = sequence(3), sequence(3)
    under.add(first)
    step(under)
    under.add(second)
    assert {work.sequence for work in under.plan()} == {first, second}


def test_a_prompt_is_computed_in_chunks_of_the_step_while_nobody_generates() -> None:
    under = scheduler(blocks=64, max_batch=1, step_tokens=8, chunk_tokens=4)
    under.add(sequence(20))
    assert [step(under)[0].count for _ in range(3)] == [8, 8, 4]


def test_a_prompt_is_computed_in_small_chunks_while_others_generate() -> None:
    under = scheduler(blocks=64, step_tokens=64, chunk_tokens=8)
    first, long = sequence(3, 20), sequence(40)
    under.add(first)
    step(under)
    under.add(long)
    steps = [{work.sequence: work.count for work in step(under)} for _ in range(5)]
    assert steps == [{first: 1, long: 8}] * 5
    assert long.generated == 1


def test_chunks_shrink_far_inside_a_long_prompt() -> None:
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


def test_the_first_token_of_a_newcomer_does_not_wait_for_tokens_of_others() -> None:
    under = scheduler(blocks=64, step_tokens=64, chunk_tokens=16)
    greedy = [sequence(3, 20, salt="greedy") for _ in range(3)]
    for one in greedy:
        under.add(one)
    step(under)
    light = sequence(10, 20, salt="light")
    under.add(light)
    assert [work.sequence for work in step(under)] == [light]
    assert {work.sequence for work in step(under)} == {light, *greedy}


def test_a_newcomer_does_not_wait_for_what_is_left_of_a_greedy_tenants_prompt() -> None:
    under = scheduler(blocks=64, max_batch=8, step_tokens=64, chunk_tokens=12)
    under.add(sequence(3, 20, salt="greedy"))
    step(under)
    under.add(sequence(16, 20, salt="greedy"))
    step(under)
    light = sequence(10, 20, salt="light")
    under.add(light)
    assert step(under)[0].sequence is light
    assert light.generated == 1


def test_newcomers_that_keep_coming_take_no_more_than_every_second_step_from_others() -> None:
    under = scheduler(blocks=64, step_tokens=64, chunk_tokens=16)
    steady = sequence(3, 20, salt="steady")
    under.add(steady)
    step(under)
    steps = []
    for number in range(8):
        under.add(sequence(5, 1, salt=f"tenant-{number}"))
        steps.append(steady in {work.sequence for work in step(under)})
    assert steps == [False, True] * 4


def test_chunks_end_where_blocks_end() -> None:
    under = scheduler(blocks=64, size=4, max_batch=2, step_tokens=64, chunk_tokens=10)
    under.add(sequence(3, 20))
    step(under)
    under.add(sequence(30))
    assert [step(under)[-1].count for _ in range(4)] == [8, 8, 8, 6]


def test_what_is_left_of_a_budget_is_not_split_below_a_block() -> None:
    under = scheduler(blocks=64, size=4, step_tokens=16)
    first, second = sequence(14), sequence(20)
    under.add(first)
    under.add(second)
    assert {work.sequence: work.count for work in step(under)} == {first: 14}


def test_a_short_prompt_passes_a_long_one_that_has_begun() -> None:
    under = scheduler(blocks=64, step_tokens=8)
    long, short = sequence(100), sequence(8)
    under.add(long)
    step(under)
    under.add(short)
    step(under)
    assert short.generated == 1


def test_a_prompt_that_is_mostly_cached_is_a_short_one() -> None:
    under = scheduler(blocks=64, step_tokens=8)
    run(under, sequence(40, stem=STEM))
    under.add(sequence(30))
    step(under)
    under.add(cached := sequence(46, stem=STEM))
    step(under)
    assert cached.generated == 1


def test_an_urgent_prompt_goes_before_a_shorter_one() -> None:
    under = scheduler(blocks=64, step_tokens=8)
    under.add(sequence(20))
    step(under)
    under.add(urgent := sequence(40, priority=-1))
    for _ in range(5):
        step(under)
    assert urgent.generated == 1


def test_a_long_prompt_is_not_stopped_by_short_ones_that_keep_coming() -> None:
    under = scheduler(blocks=256, max_batch=4, step_tokens=8)
    under.add(long := sequence(80, 1))
    begun = ""
    while not long.generated:
        begun += "L" if [work.sequence for work in step(under)] == [long] else "s"
        under.add(sequence(7, 1))
    assert begun == "LssL" + "sssL" * 8


def test_every_runner_gets_a_token_even_under_a_tiny_budget() -> None:
    under = scheduler(blocks=16, max_batch=4, step_tokens=1)
    for _ in range(4):
        under.add(sequence(1, 3))
    for _ in range(4):
        step(under)
    assert not under.busy
