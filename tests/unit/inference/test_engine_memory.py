"""Steps that lack memory: who is tried again, who is sent elsewhere, and what the engine takes on afterwards."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Container
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from services.inference.engine import engine as engine_module
from services.inference.engine.engine import Engine
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sampling
from tests.unit.inference.asking import StartEngine, failure, submit, tokens, unbroken


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
