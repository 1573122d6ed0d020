"""What becomes of requests when a step fails or hangs, when the loop dies, and when the engine is closed."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from services.common.errors import DeadlineExceeded, UpstreamUnavailable
from services.inference.engine import generation as generation_module
from services.inference.engine.schedule import Work
from tests.unit.inference.asking import StartEngine, failure, held, submit, tokens


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
