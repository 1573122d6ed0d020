"""A call for which no pod is ready waits for one, in bounds, and is told the truth when it has waited in vain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from services.common.errors import ModelNotFound, NoPodReady
from services.common.sse import Event
from services.gateway import hold
from services.gateway.route import read
from tests.unit.gateway.dispatching import Dispatcher
from tests.unit.gateway.scripted_pod import Handler, Script, scripted_pod
from tests.unit.gateway.test_relay import WORDS, after, whole

STREAM = {"stream": True, "temperature": 0}
LOADING = b": waiting for a pod (loading: pack)\n\n"


class Loading:
    """A pod that becomes ready when it is told to."""

    def __init__(self, stack: ExitStack, script: Script = whole, model: str = "m") -> None:
        self.loaded = threading.Event()
        self.url = stack.enter_context(scripted_pod(script, model=model, loaded=self.loaded))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def start(stack: ExitStack) -> Callable[..., Dispatcher]:
    def begin(*urls: str, **settings: Any) -> Dispatcher:
        dispatcher = Dispatcher(*urls, **{"hold_timeout": 20, **settings})
        stack.callback(dispatcher.close)
        return dispatcher

    return begin


def once_held(dispatcher: Dispatcher, then: Callable[[], None], calls: int = 1) -> threading.Thread:
    """Does something when so many calls wait."""

    def run() -> None:
        while dispatcher.hold.waiting < calls:
            time.sleep(0.005)
        then()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def becomes_ready(dispatcher: Dispatcher, pod: Loading) -> Callable[[], None]:
    def then() -> None:
        pod.loaded.set()
        dispatcher.fleet.look()

    return then


class TestWaiting:
    def test_a_request_goes_on_when_a_pod_is_ready(self, stack: ExitStack, start: Callable[..., Dispatcher]) -> None:
        pod = Loading(stack)
        dispatcher = start(pod.url)
        helper = once_held(dispatcher, becomes_ready(dispatcher, pod))
        got = dispatcher.ask({"temperature": 0})
        helper.join()
        assert got.body["choices"][0]["message"]["content"] == "".join(WORDS.values())
        assert float(read(got.spent.route)["held"]) > 0
        assert read(got.spent.route)["policy"] == "only"
        assert dispatcher.hold.waiting == 0

    def test_a_stream_is_told_the_phase_meanwhile(
        self, stack: ExitStack, start: Callable[..., Dispatcher], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hold, "SAY", 0.05)
        pod = Loading(stack)
        dispatcher = start(pod.url)
        seen: list[Event] = []

        def on_event(event: Event) -> None:
            seen.append(event)
            if len(seen) == 3:
                becomes_ready(dispatcher, pod)()

        got = dispatcher.ask(STREAM, on_event=on_event)
        assert got.comments == [LOADING] * 3
        assert got.text == "".join(WORDS.values())
        assert got.events[-1] == "[DONE]"
        assert got.spent.outcome == "ok"

    def test_a_stream_whose_only_pod_was_lost_goes_on_when_it_is_back(
        self, stack: ExitStack, start: Callable[..., Dispatcher]
    ) -> None:
        legs: list[list[int]] = []

        def script(handler: Handler, body: dict[str, Any]) -> None:
            legs.append(body.get("resume_token_ids", []))
            (after(3) if len(legs) == 1 else whole)(handler, body)

        dispatcher = start(stack.enter_context(scripted_pod(script)))

        def on_event(event: Event) -> None:
            if event.comment:
                dispatcher.fleet.look()

        got = dispatcher.ask(STREAM, on_event=on_event)
        assert got.text == "".join(WORDS.values())
        assert got.comments == [b": waiting for a pod (not ready)\n\n"]
        assert legs == [[], list(WORDS)[:2]]
        assert got.spent.resumes == 1

    def test_a_stream_that_was_lost_waits_until_the_other_pod_has_room(
        self, stack: ExitStack, start: Callable[..., Dispatcher]
    ) -> None:
        """As many as were in the lost pod come at once: none of them may end for that."""
        asked: list[int] = []

        def full(handler: Handler, body: dict[str, Any]) -> None:
            asked.append(len(body["resume_token_ids"]))
            if len(asked) < 5:
                handler.answer(429, {"error": {"message": "full", "type": "t", "code": "queue_full"}})
            else:
                whole(handler, body)

        dispatcher = start(*(stack.enter_context(scripted_pod(script)) for script in (after(3), full)))
        got = dispatcher.ask(STREAM)
        assert got.text == "".join(WORDS.values())
        assert asked == [2] * 5
        assert (got.spent.outcome, got.spent.resumes) == ("ok", 1)

    def test_a_fallback_that_is_ready_first_takes_it(self, stack: ExitStack, start: Callable[..., Dispatcher]) -> None:
        pods = [Loading(stack), Loading(stack, model="b")]
        dispatcher = start(*(pod.url for pod in pods), fallbacks={"m": ["b"]})
        helper = once_held(dispatcher, becomes_ready(dispatcher, pods[1]))
        got = dispatcher.ask({})
        helper.join()
        assert got.error is None
        assert got.spent.model == "b"

    def test_a_model_that_turns_out_not_to_be_served_does_not_exist(
        self, stack: ExitStack, start: Callable[..., Dispatcher]
    ) -> None:
        """As long as a pod has not said what it serves, it may be anything."""
        pod = Loading(stack, model="b")
        dispatcher = start(pod.url, hold_timeout=20)
        dispatcher.fleet.upstreams[0].expected = frozenset()
        helper = once_held(dispatcher, becomes_ready(dispatcher, pod))
        got = dispatcher.ask({}, timeout=3)
        helper.join()
        assert isinstance(got.error, ModelNotFound)


class TestInVain:
    def test_a_request_is_told_when_a_pod_will_be_ready(
        self, stack: ExitStack, start: Callable[..., Dispatcher]
    ) -> None:
        dispatcher = start(Loading(stack).url, hold_timeout=0.1)
        for seconds in (6.0, 6.0, 6.0):
            dispatcher.fleet.load_times.record("m", seconds)
        error = dispatcher.ask({}).error
        assert isinstance(error, NoPodReady)
        assert 4 <= int(error.headers["Retry-After"]) <= 7, "and the second until the next look"

    def test_a_stream_is_told_so_by_its_last_event(self, stack: ExitStack, start: Callable[..., Dispatcher]) -> None:
        dispatcher = start(Loading(stack).url, hold_timeout=0.1)
        got = dispatcher.ask(STREAM)
        assert got.comments == [LOADING]
        (event,) = got.events
        assert event["error"]["code"] == "upstream_unavailable"
        assert event["error"]["retry_after"] >= 1
        assert got.spent.outcome == "upstream_error"
        assert read(got.spent.route)["policy"] == "hold"

    def test_nobody_waits_beyond_his_own_deadline(self, stack: ExitStack, start: Callable[..., Dispatcher]) -> None:
        dispatcher = start(Loading(stack).url, hold_timeout=60)
        begun = time.monotonic()
        assert isinstance(dispatcher.ask({}, timeout=0.2).error, NoPodReady)
        assert time.monotonic() - begun < 30

    def test_one_more_than_may_wait_is_refused_at_once(
        self, stack: ExitStack, start: Callable[..., Dispatcher]
    ) -> None:
        pod = Loading(stack)
        dispatcher = start(pod.url, hold_max=2)
        with ThreadPoolExecutor(2) as clients:
            held = [clients.submit(dispatcher.ask, {}) for _ in range(2)]
            once_held(dispatcher, lambda: None, calls=2).join()
            refused = [dispatcher.ask(body) for body in ({}, STREAM)]
            becomes_ready(dispatcher, pod)()
            assert [one.result(20).error for one in held] == [None, None]
        assert all(isinstance(one.error, NoPodReady) for one in refused)
        assert all(one.comments == [] for one in refused), "also a stream: with a status, not with an event"

    def test_a_pod_that_is_ready_and_refuses_each_time_ends_the_wait(
        self, stack: ExitStack, start: Callable[..., Dispatcher]
    ) -> None:
        def closes(handler: Handler, _body: dict[str, Any]) -> None:
            handler.break_off()

        pod = Loading(stack, closes)
        dispatcher = start(pod.url)

        def ready_again() -> None:
            pod.loaded.set()
            while dispatcher.hold.waiting or not done.is_set():
                dispatcher.fleet.look()
                time.sleep(0.05)

        done = threading.Event()
        helper = once_held(dispatcher, ready_again)
        error = dispatcher.ask({}).error
        done.set()
        helper.join()
        assert error is not None
        assert (error.status, error.code) == (503, "upstream_unavailable")
