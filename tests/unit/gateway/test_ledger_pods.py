"""What pods say of calls, ours and others', and those that say nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from services.common.wire import Usage
from services.gateway.ledger.pods import Known, Silent, ask, ask_all
from services.gateway.upstreams.choose import Upstream
from tests.unit.gateway.scripted_pod import Handler, scripted_pod

USED = Usage(10, 5, 4, 0.5, 2.0)
KNOWN = {"id": "a", "running": False, "outcome": "stop", "usage": USED.body()}

StartPod = Callable[..., Upstream]


@pytest.fixture
def start_pod() -> Iterator[StartPod]:
    """A pod that answers questions about calls with a status and a body; another engine's where it is said."""
    with ExitStack() as stack:

        def start(status: int, body: Any, *, owner: str = "forebay") -> Upstream:
            def script(handler: Handler, _: dict[str, Any]) -> None:
                handler.answer(status, body)

            pod = Upstream(stack.enter_context(scripted_pod(script, owner)))
            stack.callback(pod.pool.close)
            pod.ready, pod.models = True, {"m": {"owned_by": owner}}
            return pod

        yield start


def test_a_pod_tells_what_it_knows(start_pod: StartPod) -> None:
    running = {**KNOWN, "id": "b", "running": True, "outcome": None}
    pod = start_pod(200, {"calls": [KNOWN, running]})
    assert ask(pod, ["a", "b", "c"]) == {"a": Known(pod.url, "stop", USED), "b": Known(pod.url, None, USED)}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"error": {}}),
        (405, b"no"),
        (200, b"garbage"),
        (200, {"calls": [1, {"id": "a"}]}),
        (200, {}),
        (200, []),
        (200, 5),
        (200, {"calls": 5}),
    ],
)
def test_a_pod_of_another_engine_knows_nothing(start_pod: StartPod, status: int, body: Any) -> None:
    assert ask(start_pod(status, body), ["a"]) == {}


def test_a_pod_that_is_in_trouble_or_gone_is_silent(start_pod: StartPod) -> None:
    for pod in (start_pod(503, {}), Upstream("http://127.0.0.1:1")):
        with pytest.raises(Silent):
            ask(pod, ["a"])


def test_all_are_asked_and_those_that_are_silent_are_told_of(start_pod: StartPod) -> None:
    first, second = start_pod(200, {"calls": [KNOWN]}), start_pod(200, {"calls": [KNOWN]})
    found, complete = ask_all([first, second], ["a"])
    assert ([known.pod for known in found["a"]], complete) == ([first.url, second.url], True)
    found, complete = ask_all([first, Upstream("http://127.0.0.1:1")], ["a"])
    assert ([known.pod for known in found["a"]], complete) == ([first.url], False)
    assert ask_all([], ["a"]) == ({}, True)
