"""The way of a call over the pods: who is asked, how often, and who answers in the place of a model that has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from services.common import sse
from services.common.errors import ModelNotFound, NoPodReady, QueueFull, UpstreamUnavailable
from services.common.wire import Answer, Usage
from services.gateway.route import read
from tests.unit.gateway.dispatching import Dispatcher
from tests.unit.gateway.scripted_pod import Handler, Script, scripted_pod

Start = Callable[..., Dispatcher]


class Serving:
    """A pod that answers as whichever model it is asked for, and keeps what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        self.bodies.append(body)
        self.headers.append(dict(handler.headers))
        answer = Answer.new("chat", body["model"])
        if not body.get("stream"):
            handler.answer(200, answer.whole([("hi", "stop")], Usage(3, 1)))
            return
        handler.start_stream()
        for chunk in (answer.first(), answer.delta("hi"), answer.last("stop"), answer.usage(Usage(3, 1))):
            handler.send_piece(sse.event(chunk))
        handler.send_piece(sse.DONE)
        handler.end_stream()


class Refusing:
    def __init__(self, status: int, **headers: str) -> None:
        self.asked = 0
        self._status, self._headers = status, headers

    def __call__(self, handler: Handler, _body: dict[str, Any]) -> None:
        self.asked += 1
        envelope = {"error": {"message": "no", "type": "t", "code": "c"}}
        handler.answer(self._status, envelope, {name.replace("_", "-"): value for name, value in self._headers.items()})


@pytest.fixture
def start() -> Iterator[Start]:
    """Pods of a model each, given as (model, script), seen ready; those of the first are asked in their order."""
    with ExitStack() as stack:

        def begin(*pods: tuple[str, Script], **settings: Any) -> Dispatcher:
            urls = [stack.enter_context(scripted_pod(script, model=model)) for model, script in pods]
            dispatcher = Dispatcher(*urls, **settings)
            stack.callback(dispatcher.close)
            return dispatcher

        yield begin


class TestFallbacks:
    @pytest.mark.parametrize("refusal", [429, 503, 500])
    @pytest.mark.parametrize("stream", [True, False])
    def test_another_model_answers_where_no_pod_of_its_own_can(self, start: Start, refusal: int, stream: bool) -> None:
        other = Serving()
        dispatcher = start(("m", Refusing(refusal)), ("b", other), fallbacks={"m": ["b"]})
        got = dispatcher.ask({"stream": stream})
        assert got.error is None
        assert (got.events[0] if stream else got.body)["model"] == "b", "the answer says truly who gave it"
        assert [body["model"] for body in other.bodies] == ["b"]
        assert got.spent.model == "b"
        assert not got.spent.cacheable
        assert read(got.spent.route)["model"] == "b"

    def test_they_are_tried_in_their_order(self, start: Start) -> None:
        last = Serving()
        full = Refusing(429)
        dispatcher = start(("m", full), ("b", full), ("c", last), fallbacks={"m": ["nobody", "b", "c"]})
        assert dispatcher.ask({}).body["model"] == "c"
        assert full.asked == 2

    def test_one_answers_for_a_model_that_no_pod_serves(self, start: Start) -> None:
        dispatcher = start(("b", Serving()), fallbacks={"m": ["b"]})
        assert dispatcher.ask({}).body["model"] == "b"

    def test_the_first_refusal_is_what_the_client_is_told(self, start: Start) -> None:
        dispatcher = start(("m", Refusing(429, Retry_After="7")), ("b", Refusing(503)), fallbacks={"m": ["b"]})
        error = dispatcher.ask({}).error
        assert error is not None
        assert (error.status, error.headers["Retry-After"]) == (429, "7")

    def test_a_clients_own_mistake_is_no_reason_for_one(self, start: Start) -> None:
        other = Serving()
        error = start(("m", Refusing(400)), ("b", other), fallbacks={"m": ["b"]}).ask({}).error
        assert error is not None
        assert (error.status, other.bodies) == (400, [])

    def test_a_key_that_is_limited_to_some_models_is_answered_by_no_other(self, start: Start) -> None:
        pods = (("m", Refusing(429)), ("b", Serving()), ("c", Serving()))
        dispatcher = start(*pods, fallbacks={"m": ["b", "c"]}, models=frozenset({"m", "c"}))
        assert dispatcher.ask({}).body["model"] == "c"

    def test_as_many_pods_are_tried_as_without_and_one_of_the_other_model(self, start: Start) -> None:
        full, other = Refusing(429), Serving()
        dispatcher = start(*[("m", full)] * 4, ("b", other), fallbacks={"m": ["b"]})
        assert dispatcher.ask({}).body["model"] == "b"
        assert full.asked == 3


class TestRetries:
    def test_an_error_of_one_pod_is_not_the_last_word(self, start: Start) -> None:
        got = start(("m", Refusing(500)), ("m", Serving())).ask({})
        assert got.body["model"] == "m"
        assert got.spent.retries == 1

    @pytest.mark.parametrize("status", [400, 404, 501, 504])
    def test_what_every_pod_would_answer_is_not_asked_again(self, start: Start, status: int) -> None:
        other = Serving()
        error = start(("m", Refusing(status)), ("m", other)).ask({}).error
        assert error is not None
        assert (error.status, other.bodies) == (status, [])

    def test_none_is_made_beyond_the_budget(self, start: Start) -> None:
        other = Serving()
        dispatcher = start(("m", Refusing(503)), ("m", other))
        while dispatcher.fleet.retries.spend():
            pass
        error = dispatcher.ask({}).error
        assert error is not None
        assert (error.status, other.bodies) == (503, [])

    def test_a_pod_that_took_nothing_costs_none_of_the_budget(self, start: Start) -> None:
        with scripted_pod(Serving(), model="m") as gone:
            dispatcher = Dispatcher(gone)
        left = start(("m", Serving()))
        dispatcher.fleet.upstreams += left.fleet.upstreams
        while dispatcher.fleet.retries.spend():
            pass
        assert dispatcher.ask({}).error is None

    def test_many_pods_that_are_gone_at_once_are_no_pods_and_not_many_tries(self, start: Start) -> None:
        """So that the call is held for the first one that comes back."""
        with ExitStack() as stack:
            gone = Dispatcher(*(stack.enter_context(scripted_pod(Serving(), model="m")) for _ in range(5)))
        assert isinstance(gone.ask({}).error, NoPodReady)
        assert gone.ready() == [False] * 5


class TestOverload:
    def test_who_could_not_be_served_in_time_is_told_at_once_when_he_can(self, start: Start) -> None:
        pod = Serving()
        dispatcher = start(("m", pod))
        dispatcher.fleet.queue_wait = lambda model: 50.0  # type: ignore[method-assign]
        error = dispatcher.ask({}, timeout=30).error
        assert isinstance(error, QueueFull)
        assert pod.bodies == []
        wait = int(error.headers["Retry-After"])
        assert wait == 35, "by then 15 s of the queue are left, half of what the request has"

    def test_a_queue_that_leaves_time_takes_the_request(self, start: Start) -> None:
        dispatcher = start(("m", Serving()))
        dispatcher.fleet.queue_wait = lambda model: 20.0  # type: ignore[method-assign]
        assert dispatcher.ask({}, timeout=30).error is None

    def test_a_fallback_with_a_shorter_queue_takes_it(self, start: Start) -> None:
        dispatcher = start(("m", Serving()), ("b", Serving()), fallbacks={"m": ["b"]})
        waits = {"m": 50.0, "b": 0.0}
        dispatcher.fleet.queue_wait = lambda model: waits[model]  # type: ignore[method-assign]
        assert dispatcher.ask({}).body["model"] == "b"


class TestWhatPodsAreSent:
    def test_the_calls_own_id_and_the_tenants_weight(self, start: Start) -> None:
        pod = Serving()
        start(("m", Refusing(503)), ("m", pod)).ask({})
        assert pod.headers[0]["X-Forebay-Weight"] == "1"
        assert len(pod.headers[0]["X-Forebay-Call"]) == 28


def test_a_model_that_no_pod_ever_served_does_not_exist(start: Start) -> None:
    dispatcher = start(("b", Serving()))
    assert isinstance(dispatcher.ask({}).error, ModelNotFound)


def test_a_model_whose_pods_are_gone_still_exists(start: Start) -> None:
    dispatcher = start(("m", Serving()))
    dispatcher.fleet.lost(dispatcher.fleet.upstreams[0], "gone")
    error = dispatcher.ask({}).error
    assert isinstance(error, NoPodReady)
    assert error.code == UpstreamUnavailable.code
    assert int(error.headers["Retry-After"]) >= 1
