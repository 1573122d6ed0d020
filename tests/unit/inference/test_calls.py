"""What a pod still knows of a call, for a gateway that asks by its id."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from flask.testing import FlaskClient

from services.common.telemetry import CALL_HEADER
from services.common.wire import Usage
from services.inference import calls as module
from services.inference.calls import Calls, whole
from services.inference.engine.engine import Engine
from services.inference.engine.generation import Generation
from services.inference.engine.sequence import Sampling
from tests.unit.inference.answering import HI, MODEL


def chat(client: FlaskClient, call: str) -> dict[str, Any]:
    """The usage of a chat of this call id."""
    body = {"model": MODEL, "messages": HI, "max_tokens": 6}
    usage: dict[str, Any] = client.post("/v1/chat/completions", json=body, headers={CALL_HEADER: call}).json["usage"]
    return usage


def generation_of(engine: Engine, max_tokens: int) -> Generation:
    deadline = time.monotonic() + 30
    return engine.submit([1, 2, 3], Sampling(temperature=0), max_tokens=max_tokens, ignore_eos=True, deadline=deadline)


def fake(outcome: str | None) -> Any:
    """What `Calls` sees of a generation."""
    return SimpleNamespace(outcome=outcome, on_end=None)


def count_of(generation: Generation) -> Callable[[], Usage]:
    sequence = generation.sequence
    return lambda: Usage(sequence.prompt_length, sequence.generated, sequence.cached, sequence.seconds, sequence.joules)


def test_the_counts_of_a_call_are_there_after_its_end(client: FlaskClient) -> None:
    usage = chat(client, "call-1")
    said = client.get("/internal/calls/call-1").json
    assert said == {"id": "call-1", "running": False, "outcome": "length", "usage": usage}


def test_a_call_that_nobody_sent_is_not_known(client: FlaskClient) -> None:
    answer = client.get("/internal/calls/call-of-nobody")
    assert answer.status_code == 404
    assert answer.json["error"]["code"] == "not_found"


def test_many_calls_are_asked_for_in_one_question(client: FlaskClient) -> None:
    chat(client, "call-2")
    said = client.post("/internal/calls", json={"ids": ["call-2", "call-of-nobody"]}).json["calls"]
    assert [one["id"] for one in said] == ["call-2"]


@pytest.mark.parametrize("body", [{}, {"ids": "call"}, {"ids": [1]}, {"ids": ["x"] * 1001}])
def test_a_question_of_another_form_is_refused(client: FlaskClient, body: Any) -> None:
    answer = client.post("/internal/calls", json=body)
    assert (answer.status_code, answer.json["error"]["param"]) == (400, "ids")


def test_a_cancelled_call_is_counted_to_its_last_token(start_engine: Callable[..., Engine]) -> None:
    engine, calls = start_engine(), Calls()
    generation = generation_of(engine, 500)
    calls.follow("call", [generation], count_of(generation))
    pieces = iter(generation)
    for _ in range(3):
        next(pieces)
    found = calls.find("call")
    assert found is not None
    assert (found[0], found[1]) == (True, None)
    assert found[2].completion_tokens >= 3

    generation.cancel()
    found = calls.find("call", wait=10)
    assert found is not None
    running, outcome, usage = found
    assert (running, outcome) == (False, "cancelled")
    assert usage.completion_tokens == generation.sequence.generated
    assert usage.compute_seconds == generation.sequence.seconds > 0


def test_what_a_call_cost_outlives_its_tokens(start_engine: Callable[..., Engine]) -> None:
    engine, calls = start_engine(), Calls()
    generation = generation_of(engine, 2)
    calls.follow("call", [generation], count_of(generation))
    list(generation)
    assert [leg.count for leg in calls._legs["call"]] == [None]
    assert generation.on_end is None


def test_a_call_that_came_back_counts_its_tokens_once_and_its_time_twice() -> None:
    legs = [Usage(5, 7, 0, 0.5, 2.0), Usage(5, 20, 4, 1.0, 3.0)]
    assert whole(legs) == Usage(5, 20, 4, 1.5, 5.0)


def test_energy_that_a_leg_does_not_know_is_not_known_of_the_call() -> None:
    assert whole([Usage(5, 7, 0, 0.5, 2.0), Usage(5, 20, 4, 1.0, None)]).energy_joules is None


def test_old_calls_are_forgotten_and_running_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    calls = Calls(lambda: now[0])
    calls.follow("old", [fake("stop")], lambda: Usage(1, 1))
    calls.follow("running", [fake(None)], lambda: Usage(1, 1))
    now[0] = module.KEPT + 1
    calls.follow("new", [fake("stop")], lambda: Usage(1, 1))
    assert [one for one in ("old", "running", "new") if calls.find(one)] == ["running", "new"]

    monkeypatch.setattr(module, "MOST", 10)
    for number in range(100):
        calls.follow(f"call-{number}", [fake("stop")], lambda: Usage(1, 1))
    assert len(calls._legs) <= 21


def test_who_waits_for_the_end_is_told_at_the_end() -> None:
    calls, generation = Calls(), fake(None)
    calls.follow("call", [generation], lambda: Usage(1, 1))

    def end() -> None:
        generation.outcome = "stop"
        generation.on_end()

    threading.Timer(0.05, end).start()
    found = calls.find("call", wait=30)
    assert found is not None
    assert found[0] is False
