"""The engine's loop over a tiny real model: what a request meets, and what it leaves behind."""

from __future__ import annotations

import itertools
import sys
import time
import weakref
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from services.common.errors import ApiError, DeadlineExceeded, InvalidRequest, QueueFull, UpstreamUnavailable
from services.inference.engine import engine as engine_module
from services.inference.engine import generation as generation_module
from services.inference.engine.engine import Engine
from services.inference.engine.generation import Generation, Piece
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sampling

StartEngine = Callable[..., Engine]
GREEDY = Sampling(temperature=0)
PROMPT = [3, 14, 15, 92]


def submit(engine: Engine, prompt: list[int] = PROMPT, *, seconds: float = 30, **more: Any) -> Generation:
    given = {"sampling": GREEDY, "max_tokens": 8} | more
    return engine.submit(prompt, given.pop("sampling"), deadline=time.monotonic() + seconds, **given)


def tokens(generation: Generation) -> list[int | None]:
    return [piece.token for piece in generation]


def failure(generation: Generation) -> ApiError:
    with pytest.raises(ApiError) as caught:
        list(generation)
    return caught.value


@contextmanager
def held(engine: Engine) -> Iterator[Event]:
    """Holds the engine in its next step until the block ends; the event tells that it is there."""
    forward, arrived, go_on = engine.loaded.runner.forward, Event(), Event()

    def wait(plan: Any) -> Any:
        arrived.set()
        go_on.wait(30)
        return forward(plan)

    engine.loaded.runner.forward = wait  # type: ignore[method-assign]
    try:
        yield arrived
    finally:
        engine.loaded.runner.forward = forward  # type: ignore[method-assign]
        go_on.set()


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


RULES = {
    "greedy": GREEDY,
    "drawn": Sampling(temperature=1.0, top_p=0.95, top_k=50, min_p=0.01, seed=7),
    "penalized": Sampling(
        temperature=0.8, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.7, logit_bias=((65, 3.0),)
    ),
}


def unbroken(engine: Engine, **more: Any) -> list[Piece]:
    return list(submit(engine, **more))


def resumed(engine: Engine, before: list[Piece], **more: Any) -> list[Piece]:
    return list(submit(engine, resume=[piece.token for piece in before], **more))


@pytest.mark.parametrize("rule", RULES)
def test_an_answer_resumed_at_any_token_goes_on_as_it_would_have(start_engine: StartEngine, rule: str) -> None:
    engine = start_engine()
    more = {"sampling": RULES[rule], "max_tokens": 24}
    whole = unbroken(engine, **more)
    for cut in range(len(whole)):
        assert resumed(engine, whole[:cut], **more) == whole[cut:]


def test_an_answer_resumed_beside_others_goes_on_as_it_would_have(start_engine: StartEngine) -> None:
    engine = start_engine(step_tokens=5, max_batch=4)
    more = {"sampling": RULES["drawn"], "max_tokens": 24}
    whole = unbroken(engine, **more)
    broken = [submit(engine, resume=[piece.token for piece in whole[:cut]], **more) for cut in range(0, 24, 2)]
    for cut, one in zip(range(0, 24, 2), broken, strict=True):
        assert list(one) == whole[cut:]


def test_text_held_back_at_the_break_comes_after_it(start_engine: StartEngine) -> None:
    engine = start_engine()
    text = "".join(piece.text for piece in unbroken(engine, max_tokens=24))
    # All of the text might be the beginning of this.
    more = {"max_tokens": 24, "stops": [text + "…"]}
    whole = unbroken(engine, **more)
    assert [piece.text for piece in whole] == [""] * 23 + [text]
    for cut in range(len(whole)):
        assert resumed(engine, whole[:cut], **more) == whole[cut:]


def stops_inside(engine: Engine) -> dict[str, Any]:
    text = "".join(piece.text for piece in unbroken(engine, max_tokens=24))
    return {"max_tokens": 24, "stops": [text[len(text) // 2 :][:2]]}


def ends_itself(engine: Engine) -> dict[str, Any]:
    engine.loaded.eos_ids = frozenset({tokens(submit(engine))[3]})  # type: ignore[arg-type]
    return {"max_tokens": 24}


def reaches_its_limit(_engine: Engine) -> dict[str, Any]:
    return {"max_tokens": 6}


ENDS = pytest.mark.parametrize("ends", [stops_inside, ends_itself, reaches_its_limit])


@ENDS
def test_an_answer_resumed_after_its_last_token_ends_at_once_for_the_same_reason(
    start_engine: StartEngine, registry: CollectorRegistry, ends: Callable[[Engine], dict[str, Any]]
) -> None:
    engine = start_engine()
    more = ends(engine)
    whole = unbroken(engine, **more)
    assert len(whole) < 24
    for cut in range(len(whole)):
        assert resumed(engine, whole[:cut], **more) == whole[cut:]
    labels = {"model": engine.name, "outcome": str(whole[-1].finish)}
    before = registry.get_sample_value("forebay_engine_requests_total", labels) or 0
    with held(engine):  # no step is needed
        assert resumed(engine, whole, **more) == [Piece(None, "", whole[-1].finish)]
    assert registry.get_sample_value("forebay_engine_requests_total", labels) == before + 1


@ENDS
def test_tokens_that_no_answer_begins_with_are_refused(
    start_engine: StartEngine, ends: Callable[[Engine], dict[str, Any]]
) -> None:
    engine = start_engine()
    more = ends(engine)
    whole = tokens(submit(engine, **more))
    for wrong in ([*whole, 1], [-1], [engine.loaded.vocabulary]):
        with pytest.raises(InvalidRequest) as caught:
            submit(engine, resume=wrong, **more)
        assert caught.value.param == "resume_token_ids"


def test_resumed_tokens_count_as_generated(start_engine: StartEngine, registry: CollectorRegistry) -> None:
    engine = start_engine()
    generation = submit(engine, resume=[65, 66, 67], max_tokens=8)
    assert len(tokens(generation)) == 5
    assert (generation.sequence.prompt_length, generation.sequence.generated) == (len(PROMPT), 8)
    assert registry.get_sample_value("forebay_engine_generated_tokens_total", {"model": engine.name}) == 5


def test_the_end_token_may_be_ignored(start_engine: StartEngine) -> None:
    engine = start_engine()
    more = ends_itself(engine)
    assert len(tokens(submit(engine, **more))) < 24
    whole = unbroken(engine, ignore_eos=True, **more)
    assert (len(whole), whole[-1].finish) == (24, "length")
    assert resumed(engine, whole[:12], ignore_eos=True, **more) == whole[12:]


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


def test_a_step_that_fails_ends_only_its_own_requests(
    start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start_engine(max_batch=1)
    forward = engine.loaded.runner.forward

    def fail(plan: list[Work]) -> Any:
        if plan[0].sequence.ids[0] == 99:
            raise RuntimeError("on purpose")
        return forward(plan)

    monkeypatch.setattr(engine.loaded.runner, "forward", fail)
    hit, waiting = submit(engine, [99, 1]), submit(engine)
    assert failure(hit).status == 500
    assert len(tokens(waiting)) == 8
    assert engine.loaded.pool.used == 0
    assert "on purpose" in caplog.text


def test_a_token_that_cannot_be_written_ends_only_its_own_request(
    start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start_engine()
    hit, other = submit(engine), submit(engine, [5, 5])
    monkeypatch.setattr(hit.detokenizer, "push", lambda _token: 1 / 0)
    assert failure(hit).status == 500
    assert len(tokens(other)) == 8
    assert "ZeroDivisionError" in caplog.text


def cuda_is_full() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cublas_is_full() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def cpu_is_full() -> None:
    torch.empty(1 << 60)


def python_is_full() -> None:
    bytearray(1 << 60)


def fail_in_steps(engine: Engine, steps: Container[int], fail: Callable[[], None]) -> None:
    """Has the engine fail in the steps of these numbers, counted from now on."""
    forward, numbers = engine.loaded.runner.forward, itertools.count()

    def maybe(plan: list[Work]) -> Any:
        if next(numbers) in steps:
            fail()
        return forward(plan)

    engine.loaded.runner.forward = maybe  # type: ignore[method-assign]


def failures(registry: CollectorRegistry, engine: Engine, cause: str) -> float:
    labels = {"model": engine.name, "cause": cause}
    return registry.get_sample_value("forebay_engine_step_failures_total", labels) or 0


@pytest.mark.parametrize("full", [cuda_is_full, cublas_is_full, cpu_is_full, python_is_full])
def test_a_step_that_lacks_memory_costs_nobody_an_answer(
    start_engine: StartEngine, registry: CollectorRegistry, full: Callable[[], None]
) -> None:
    engine = start_engine()
    drawn = Sampling(temperature=1.0, seed=5)
    alone = [unbroken(engine, prompt=[i, 7], sampling=drawn) for i in range(6)]
    fail_in_steps(engine, {3}, full)
    together = [submit(engine, [i, 7], sampling=drawn) for i in range(6)]
    assert [list(one) for one in together] == alone
    assert failures(registry, engine, "out_of_memory") == 1
    assert engine.loaded.pool.used == 0


def test_a_request_that_lacks_memory_twice_is_sent_elsewhere_and_the_others_go_on(
    start_engine: StartEngine, registry: CollectorRegistry
) -> None:
    engine = start_engine(max_batch=1)
    fail_in_steps(engine, {2, 5}, cpu_is_full)
    hit, waiting = submit(engine), submit(engine)
    error = failure(hit)
    assert (error.status, error.envelope()["error"]["code"]) == (503, "out_of_memory")
    assert int(error.headers["Retry-After"]) >= 1
    assert len(tokens(waiting)) == 8
    assert failures(registry, engine, "out_of_memory") == 2
    assert engine.loaded.pool.used == 0


def test_an_engine_that_lacked_memory_takes_on_less(
    start_engine: StartEngine, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    engine = start_engine(kv_blocks=100, context_length=64, max_batch=2, step_tokens=64)
    fail_in_steps(engine, {0}, cpu_is_full)
    assert len(tokens(submit(engine, [1] * 50))) == 8
    assert engine.loaded.pool.count == 90
    steps = "forebay_engine_step_seconds_count"
    assert registry.get_sample_value(steps, {"model": engine.name}) == 2 + 7  # its prompt in chunks of 32
    assert "takes on less" in caplog.text


def test_however_often_memory_lacks_the_longest_request_still_fits(start_engine: StartEngine) -> None:
    engine = start_engine(kv_blocks=12, context_length=160)
    fail_in_steps(engine, range(0, 8, 2), cpu_is_full)
    for number in range(4):
        assert len(tokens(submit(engine, [number], max_tokens=1))) == 1
    assert engine.loaded.pool.count == engine.loaded.pool.blocks_for(160) == 10
    assert len(tokens(submit(engine, [1] * 100, max_tokens=60))) == 60


def test_memory_is_released_when_nothing_holds_that_of_the_failed_step(
    start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start_engine()
    alive: list[bool] = []
    of_the_step: list[weakref.ref[torch.Tensor]] = []

    def full() -> None:
        tensor = torch.zeros(8)
        of_the_step.append(weakref.ref(tensor))
        cpu_is_full()

    fail_in_steps(engine, {1}, full)
    monkeypatch.setattr(engine_module, "release_unused", lambda: alive.append(of_the_step[0]() is not None))
    monkeypatch.setattr(engine_module.log, "disabled", True)  # pytest keeps what is logged, and with it the traceback
    assert len(tokens(submit(engine))) == 8
    assert alive == [False]


def test_an_error_that_has_nothing_to_do_with_memory_is_not_tried_again(
    start_engine: StartEngine, registry: CollectorRegistry
) -> None:
    engine = start_engine()
    fail_in_steps(engine, {0}, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    blocks = engine.loaded.pool.count
    assert failure(submit(engine)).status == 500
    assert failures(registry, engine, "error") == 1
    assert engine.loaded.pool.count == blocks


def test_the_time_of_all_steps_is_charged_to_their_requests(
    start_engine: StartEngine, registry: CollectorRegistry
) -> None:
    engine = start_engine(kv_blocks=4, max_batch=4, step_tokens=4)
    several = [submit(engine, [i, 1, 2, 3], max_tokens=30) for i in range(4)]
    for one in several:
        list(one)
    charged = sum(one.sequence.seconds for one in several)
    for name in ("forebay_engine_compute_seconds_total", "forebay_engine_step_seconds_sum"):
        assert registry.get_sample_value(name, {"model": engine.name}) == pytest.approx(charged)


def test_the_energy_of_all_steps_is_charged_to_their_requests(
    start_engine: StartEngine, registry: CollectorRegistry
) -> None:
    engine = start_engine(energy=itertools.count(100.0, 2.5).__next__)  # so much between any two readings
    several = [submit(engine, [i, 1, 2, 3]) for i in range(4)]
    for one in several:
        list(one)
    steps = registry.get_sample_value("forebay_engine_step_seconds_count", {"model": engine.name})
    assert steps is not None
    charged = sum(one.sequence.joules or 0 for one in several)
    assert charged == pytest.approx(2.5 * steps)
    name = "forebay_engine_energy_joules_total"
    assert registry.get_sample_value(name, {"model": engine.name}) == pytest.approx(charged)


def test_where_energy_is_not_known_it_is_absent(start_engine: StartEngine, registry: CollectorRegistry) -> None:
    engine = start_engine()
    generation = submit(engine)
    list(generation)
    assert generation.sequence.seconds > 0
    assert generation.sequence.joules is None
    assert registry.get_sample_value("forebay_engine_energy_joules_total", {"model": engine.name}) is None


def test_an_energy_counter_that_fails_is_not_asked_again(start_engine: StartEngine) -> None:
    readings = iter([1.0, 2.0, 3.0, None])
    engine = start_engine(energy=readings.__next__)
    generation = submit(engine)
    assert len(tokens(generation)) == 8
    assert generation.sequence.joules is None


def test_a_step_that_hangs_is_trouble_and_an_idle_engine_is_not(start_engine: StartEngine) -> None:
    engine = start_engine()
    assert engine.trouble(0) is None
    with held(engine) as in_step:
        generation = submit(engine)
        assert in_step.wait(10)
        assert engine.trouble(3600) is None
        assert engine.trouble(0) == f"A step of the model '{engine.name}' has not come back for 0 seconds."
    list(generation)
    deadline = time.monotonic() + 10
    while engine.trouble(0) is not None:  # nothing tells that it went to sleep
        assert time.monotonic() < deadline
    engine.close()
    assert engine.trouble(0) is None


def test_whoever_waits_for_a_step_that_hangs_is_told_that_time_is_over(
    start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_module, "LATE", 0)
    engine = start_engine()
    with held(engine) as in_step:
        generation = submit(engine, seconds=0.01)
        assert in_step.wait(10)
        assert isinstance(failure(generation), DeadlineExceeded)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_loop_dies_ends_all_requests_and_says_so(
    start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start_engine(max_batch=1)
    with held(engine) as in_step:
        running, waiting = submit(engine), submit(engine)
        assert in_step.wait(10)
        monkeypatch.setattr(engine, "_drop_the_dead", sys.exit)  # what no handler catches
    assert isinstance(failure(running), UpstreamUnavailable)
    assert isinstance(failure(waiting), UpstreamUnavailable)
    assert engine.trouble(3600) == f"The engine of the model '{engine.name}' has stopped."
    with pytest.raises(UpstreamUnavailable):
        submit(engine)


def test_closing_ends_all_requests_with_an_error(start_engine: StartEngine) -> None:
    engine = start_engine(max_batch=1)
    running, waiting = submit(engine, max_tokens=400), submit(engine)
    next(iter(running))
    engine.close()
    assert isinstance(failure(running), UpstreamUnavailable)
    assert isinstance(failure(waiting), UpstreamUnavailable)
    with pytest.raises(UpstreamUnavailable):
        submit(engine)


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
