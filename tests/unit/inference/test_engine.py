"""The engine's loop over a tiny real model: what a request meets, and what it leaves behind."""

from __future__ import annotations

import time

import pytest
from prometheus_client import CollectorRegistry
from torch import Tensor

from services.common.errors import DeadlineExceeded, InvalidRequest, QueueFull
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sampling, Sequence
from tests.unit.inference.asking import StartEngine, failure, held, submit, tokens, unbroken


def test_an_answer_ends_at_its_limit(start_engine: StartEngine) -> None:
    pieces = list(submit(start_engine(), max_tokens=5))
    assert [piece.finish for piece in pieces] == [None] * 4 + ["length"]


def test_an_answer_ends_at_the_end_token(start_engine: StartEngine) -> None:
    engine = start_engine()
    would_be = tokens(submit(engine))
    engine.loaded.eos_ids = frozenset({would_be[3]})
    pieces = list(submit(engine))
    assert [piece.token for piece in pieces] == would_be[: would_be.index(would_be[3]) + 1]
    assert (pieces[-1].finish, pieces[-1].text) == ("stop", "")


def test_an_answer_is_cut_where_the_context_ends(start_engine: StartEngine) -> None:
    engine = start_engine(context_length=10)
    assert len(tokens(submit(engine, max_tokens=100))) == 6


def test_a_prompt_that_leaves_no_room_is_refused(start_engine: StartEngine) -> None:
    with pytest.raises(InvalidRequest):
        submit(start_engine(context_length=4))


def test_a_request_that_the_scheduler_does_not_take_is_refused_alone(start_engine: StartEngine) -> None:
    engine = start_engine()
    with held(engine) as in_step:
        running = submit(engine)
        assert in_step.wait(10)
        wrong = submit(engine, weight=-1.0)
    assert isinstance(failure(wrong), InvalidRequest)
    assert len(tokens(running)) == 8


def test_requests_run_together_and_answer_as_if_alone(start_engine: StartEngine) -> None:
    engine = start_engine()
    prompts = [[i, 20 + i, 7, i] for i in range(12)]
    alone = [tokens(submit(engine, prompt)) for prompt in prompts]
    together = [submit(engine, prompt) for prompt in prompts]
    assert [tokens(generation) for generation in together] == alone


def test_a_seed_gives_the_same_answer_alone_and_in_company(start_engine: StartEngine) -> None:
    engine = start_engine()
    rule = Sampling(temperature=1.0, top_p=0.9, seed=42)
    alone = tokens(submit(engine, sampling=rule))
    others = [submit(engine, [i], sampling=Sampling(seed=i)) for i in range(5)]
    assert tokens(submit(engine, sampling=rule)) == alone
    assert tokens(submit(engine, sampling=Sampling(temperature=1.0, top_p=0.9, seed=43))) != alone
    for other in others:
        list(other)


def test_what_the_scheduler_goes_by_reaches_it(start_engine: StartEngine) -> None:
    generation = submit(start_engine(), salt="tenant", weight=2.0, priority=-1)
    sequence = generation.sequence
    assert (sequence.salt, sequence.adapter, sequence.weight, sequence.priority) == ("tenant", None, 2.0, -1)
    list(generation)


def test_log_probabilities_come_with_the_tokens_where_they_are_asked_for(start_engine: StartEngine) -> None:
    engine = start_engine()
    for piece in unbroken(engine, sampling=Sampling(temperature=0, logprobs=3)):
        assert piece.logprob is not None
        assert piece.top[0] == (piece.token, piece.logprob)
        assert len(piece.top) == 3
    assert {(piece.logprob, piece.top) for piece in unbroken(engine)} == {(None, ())}


def test_a_cancelled_request_frees_its_place_within_one_step(start_engine: StartEngine) -> None:
    engine = start_engine(max_batch=1)
    first = submit(engine, max_tokens=400)
    next(iter(first))
    with held(engine) as in_step:
        assert in_step.wait(10)
        first.cancel()
        second = submit(engine, max_tokens=1)
    assert tokens(second)
    assert failure(first).status == 499
    assert first.sequence.generated < 399
    assert engine.loaded.pool.used == 0


def test_who_waits_takes_the_place_of_a_cancelled_request_in_the_very_next_step(start_engine: StartEngine) -> None:
    engine = start_engine(max_batch=1)
    steps: list[list[Sequence]] = []
    forward = engine.loaded.runner.forward

    def noted(plan: list[Work]) -> Tensor:
        steps.append([work.sequence for work in plan])
        return forward(plan)

    engine.loaded.runner.forward = noted  # type: ignore[method-assign,assignment]
    first = submit(engine, max_tokens=400)
    waiting = submit(engine)
    next(iter(first))
    with held(engine) as in_step:
        assert in_step.wait(10)
        before = len(steps)
        first.cancel()
    assert len(tokens(waiting)) == 8
    assert steps[before : before + 2] == [[first.sequence], [waiting.sequence]]


def test_a_request_may_be_cancelled_while_it_waits(start_engine: StartEngine) -> None:
    engine = start_engine(max_batch=1)
    first = submit(engine, max_tokens=50)
    waiting = submit(engine)
    waiting.cancel()
    assert failure(waiting).status == 499
    assert len(tokens(first)) == 50


def test_a_deadline_ends_a_running_request(start_engine: StartEngine) -> None:
    engine = start_engine()
    with held(engine) as in_step:
        late = submit(engine, seconds=0.01, max_tokens=400)
        assert in_step.wait(10)
        while time.monotonic() <= late.deadline:
            pass
    assert isinstance(failure(late), DeadlineExceeded)
    assert engine.loaded.pool.used == 0


def test_a_deadline_ends_a_waiting_request(start_engine: StartEngine) -> None:
    engine = start_engine(max_batch=1)
    first = submit(engine, max_tokens=30)
    assert isinstance(failure(submit(engine, seconds=0)), DeadlineExceeded)
    assert len(tokens(first)) == 30


def test_a_full_queue_is_refused_with_a_time_to_come_again(start_engine: StartEngine) -> None:
    engine = start_engine(max_batch=1, max_queue=1)
    with held(engine):
        accepted = [submit(engine), submit(engine)]
        with pytest.raises(QueueFull) as caught:
            submit(engine)
    assert int(caught.value.headers["Retry-After"]) >= 1
    for generation in accepted:
        assert len(tokens(generation)) == 8


def test_everything_is_counted(start_engine: StartEngine, registry: CollectorRegistry) -> None:
    engine = start_engine()
    list(submit(engine, max_tokens=5))
    cancelled = submit(engine, max_tokens=400)
    cancelled.cancel()
    failure(cancelled)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"model": engine.name, **labels})

    assert value("forebay_engine_requests_total", outcome="length") == 1
    assert value("forebay_engine_requests_total", outcome="cancelled") == 1
    assert value("forebay_engine_prompt_tokens_total") in {4, 8}
    assert value("forebay_engine_generated_tokens_total") == 5 + cancelled.sequence.generated
    assert value("gen_ai_server_request_duration_seconds_count") == 2
    assert value("gen_ai_server_time_to_first_token_seconds_count") >= 1
    assert value("gen_ai_server_time_per_output_token_seconds_count") >= 4
    assert value("forebay_engine_step_seconds_count") == value("forebay_engine_batch_size_count") >= 5
    assert value("forebay_engine_requests_running") == value("forebay_engine_requests_waiting") == 0
    assert value("forebay_engine_kv_cache_usage_ratio") == 0


def test_prompt_tokens_that_are_computed_again_are_not_counted_as_answer(
    start_engine: StartEngine, registry: CollectorRegistry
) -> None:
    engine = start_engine(kv_blocks=4, max_batch=4)
    several = [submit(engine, [i, 1, 2, 3], max_tokens=30) for i in range(4)]
    assert [len(tokens(one)) for one in several] == [30] * 4
    assert sum(one.sequence.preemptions for one in several) > 0
    assert registry.get_sample_value("forebay_engine_generated_tokens_total", {"model": engine.name}) == 120
