"""The picture of the pods: looks at real servers on loopback, with a clock that tests move."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.metrics import GatewayMetrics
from services.common.orca import LOAD_HEADER, Report
from services.gateway.upstreams.breaker import Rules
from services.gateway.upstreams.discover import Fleet
from services.gateway.upstreams.endpoint import Endpoint
from services.gateway.upstreams.outlook import OVERDUE, UNKNOWN_FOR, UNMEASURED_LOAD
from services.gateway.upstreams.resolve import Source
from tests.unit.gateway.conftest import Clock
from tests.unit.gateway.scripted_pod import Handler

READY = (200, {"status": "ready", "models": ["m"]})
LIST = (200, {"data": [{"id": "m", "owned_by": "forebay"}]})
NOT_FOUND = (404, {"error": "no such route"})
LOOK = 1
"""Seconds between looks."""


class Pod:
    """A server whose answers to looks can be changed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.readyz: tuple[int, Any] = READY
        self.models: tuple[int, Any] = LIST
        self.headers: dict[str, str] = {}

    def loads(self, phase: str, *models: str) -> None:
        self.readyz = (503, {"status": "loading", "phase": phase, "models": list(models)})


@contextmanager
def running_pod() -> Iterator[Pod]:
    class Looked(Handler):
        def do_GET(self) -> None:
            status, body = pod.readyz if self.path == "/readyz" else pod.models
            self.answer(status, body, pod.headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Looked)
    server.daemon_threads = True
    server.connections = set()  # type: ignore[attr-defined]
    pod = Pod(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield pod
    finally:
        server.shutdown()
        server.server_close()


class Named(Source):
    """Pods that a test names."""

    def __init__(self) -> None:
        super().__init__([])
        self.named: list[Endpoint] = []

    def endpoints(self) -> list[Endpoint]:
        return list(self.named)


class Looking:
    """A fleet whose looks a test takes itself."""

    def __init__(self, stack: ExitStack, clock: Clock) -> None:
        self.stack = stack
        self.clock = clock
        self.source = Named()
        self.metrics = GatewayMetrics(CollectorRegistry())
        self.fleet = Fleet(
            self.source,
            interval=LOOK,
            metrics=self.metrics,
            expected=["zero"],
            rules=Rules(in_a_row=1, pause=2),
            clock=clock,
        )
        stack.callback(self.fleet.stop)

    def pod(self, prepare: Callable[[Pod], None] = lambda _: None) -> Pod:
        """A further pod, seen once."""
        pod = self.stack.enter_context(running_pod())
        prepare(pod)
        self.source.named.append(Endpoint(pod.url))
        self.fleet.look()
        return pod

    def look(self, seconds: float = 0) -> None:
        self.clock.advance(seconds)
        self.fleet.look()

    def takes(self, model: str = "m") -> bool:
        return self.fleet.choose(model) is not None

    def break_down(self) -> None:
        attempt = self.fleet.upstreams[0].begin("m", streamed=True)
        attempt.failed()
        attempt.close()


@pytest.fixture
def looking() -> Iterator[Looking]:
    with ExitStack() as stack:
        yield Looking(stack, Clock(1000))


class TestLook:
    def test_a_pod_of_ours_and_its_models(self, looking: Looking) -> None:
        looking.pod()
        assert looking.fleet.models() == {"m": {"owned_by": "forebay"}}
        assert looking.fleet.default_model() == "m"
        assert (looking.fleet.label("m"), looking.fleet.label("n")) == ("m", "unknown")

    def test_an_engine_without_readyz_is_ready_when_it_lists_its_models(self, looking: Looking) -> None:
        for status in (404, 405, 401):
            pod = looking.pod()
            pod.readyz = (status, "what?")
            looking.look()
            assert looking.takes()
            looking.source.named.clear()

    def test_an_engine_that_answers_503_to_the_list_is_loading(self, looking: Looking) -> None:
        def llama(pod: Pod) -> None:
            pod.readyz, pod.models = NOT_FOUND, (503, {"error": {"message": "Loading model"}})

        looking.pod(llama)
        assert not looking.takes()
        assert looking.fleet.phase("m") == "loading"

    @pytest.mark.parametrize("body", [b"<html>", {"data": 7}, {"data": [{"name": "m"}]}, [], {"data": ["m"]}])
    def test_nonsense_is_no_pod(self, looking: Looking, body: Any) -> None:
        pod = looking.pod()
        pod.readyz, pod.models = NOT_FOUND, (200, body)
        looking.look()
        assert not looking.takes()

    def test_its_load_is_known_from_the_look(self, looking: Looking) -> None:
        pod = looking.pod()
        pod.headers = {LOAD_HEADER: Report(4, 8, 8, 0.5, 2.0).header()}
        looking.look(1)
        assert looking.fleet.upstreams[0].queue == 4
        assert looking.fleet.queue_wait("m") == 2
        pod.headers = {}
        looking.look(10)
        assert looking.fleet.upstreams[0].queue is None
        assert looking.fleet.queue_wait("m") == 0

    def test_the_shortest_queue_is_the_wait(self, looking: Looking) -> None:
        for waiting in (6, 2):
            looking.pod().headers = {LOAD_HEADER: Report(waiting, 8, 8, 0.5, 2.0).header()}
        looking.look(1)
        assert looking.fleet.queue_wait("m") == 1

    def test_a_pod_whose_service_does_not_call_it_ready_gets_nothing(self, looking: Looking) -> None:
        pod = looking.pod()
        looking.source.named = [Endpoint(pod.url, ready=False, model="small")]
        looking.look()
        assert not looking.takes()
        assert looking.fleet.expects("small")
        looking.source.named = [Endpoint(pod.url)]
        looking.look()
        assert looking.takes()

    def test_a_pod_that_is_no_longer_named_gets_nothing_new_and_what_runs_there_goes_on(self, looking: Looking) -> None:
        looking.pod()
        (gone,) = looking.fleet.upstreams
        attempt = gone.begin("m", streamed=True)
        looking.source.named.clear()
        looking.look()
        assert not looking.takes()
        attempt.answered(200, {})
        attempt.close()
        assert gone.inflight == 0

    def test_readiness_and_open_circuits_are_counted(self, looking: Looking) -> None:
        opened = looking.metrics.circuits_opened.labels("failures")._value
        chosen = looking.metrics.choices.labels("m", "only")._value
        before = (opened.get(), chosen.get())  # the counters of all fleets of the process are one
        looking.pod()
        looking.pod()
        looking.break_down()
        looking.look()
        assert looking.metrics.upstreams_ready.labels("m")._value.get() == 2
        assert looking.metrics.circuits_open.labels("m")._value.get() == 1
        looking.fleet.choose("m")
        assert (opened.get(), chosen.get()) == (before[0] + 1, before[1] + 1)


class TestOutlook:
    def test_why_there_is_no_pod(self, looking: Looking) -> None:
        fleet = looking.fleet
        assert fleet.phase("m") == "no pod"
        pod = looking.pod(lambda pod: pod.loads("map", "m"))
        assert fleet.phase("m") == "loading: map"
        assert fleet.phase("other") == "no pod"
        pod.readyz = READY
        looking.look()
        assert fleet.phase("m") is None
        looking.break_down()
        assert fleet.phase("m") == "circuit open"
        pod.readyz = (503, {"status": "failed", "reason": "broken"})
        looking.look()
        assert fleet.phase("m") == "not ready"

    def test_which_models_are_expected(self, looking: Looking) -> None:
        fleet = looking.fleet
        assert fleet.expects("zero"), "by the settings"
        assert not fleet.expects("m")
        pod = looking.pod(lambda pod: pod.loads("map", "m"))
        assert fleet.expects("m"), "by the word of the pod that loads"
        assert not fleet.expects("other")
        pod.readyz = READY
        looking.look()
        looking.source.named.clear()
        looking.look()
        assert fleet.expects("m"), "it was served before"

    def test_a_pod_that_never_answered_may_serve_anything_for_a_while(self, looking: Looking) -> None:
        looking.source.named = [Endpoint("http://127.0.0.1:1")]
        looking.look()
        assert looking.fleet.expects("anything")
        looking.look(UNKNOWN_FOR)
        assert not looking.fleet.expects("anything")

    def test_the_time_until_a_pod_is_ready_is_that_of_loads_before_and_of_a_look(self, looking: Looking) -> None:
        fleet = looking.fleet
        pod = looking.pod(lambda pod: pod.loads("resolve", "m"))
        assert fleet.ready_in("m") == UNMEASURED_LOAD + LOOK
        looking.look(8)
        pod.readyz = READY
        looking.look(4)
        assert fleet.ready_in("m") == 0
        pod.loads("map", "m")
        looking.look(100)
        assert fleet.ready_in("m") == 12 + LOOK
        looking.look(7)
        assert fleet.ready_in("m") == 5 + LOOK
        looking.look(13)
        assert fleet.ready_in("m") == OVERDUE * 20 + LOOK, "it is overdue"

    def test_a_pod_that_was_away_for_a_moment_has_loaded_nothing(self, looking: Looking) -> None:
        pod = looking.pod()
        pod.readyz = (500, "")
        looking.look(1)
        pod.readyz = READY
        looking.look(50)
        assert looking.fleet.load_times.typical("m") == UNMEASURED_LOAD

    def test_an_open_circuit_is_waited_for(self, looking: Looking) -> None:
        looking.pod()
        looking.break_down()
        looking.clock.advance(0.5)
        assert looking.fleet.ready_in("m") == 1.5

    def test_a_start_from_nothing_counts_from_the_first_who_waited(self, looking: Looking) -> None:
        fleet = looking.fleet
        assert not fleet.wait_ready("m", 0)
        looking.clock.advance(40)
        assert not fleet.wait_ready("m", 0)
        pod = looking.pod(lambda pod: pod.loads("map", "m"))
        pod.readyz = READY
        looking.look(10)
        assert fleet.load_times.typical("m") == 10
        looking.source.named.clear()
        looking.look()
        assert fleet.ready_in("m") == 50

    def test_who_gave_up_long_ago_does_not_lengthen_it(self, looking: Looking) -> None:
        looking.fleet.wait_ready("m", 0)
        looking.clock.advance(3600)
        looking.pod()
        looking.source.named.clear()
        looking.look()
        assert looking.fleet.ready_in("m") == UNMEASURED_LOAD


class TestWait:
    """With the real clock, as sleeping is what is tested."""

    def fleet(self, looking: Looking, **rules: Any) -> Fleet:
        metrics = GatewayMetrics(CollectorRegistry())
        fleet = Fleet(looking.source, interval=0.01, metrics=metrics, rules=Rules(**rules))
        looking.stack.callback(fleet.stop)
        return fleet

    def test_it_ends_when_a_pod_becomes_ready(self, looking: Looking) -> None:
        pod = looking.pod(lambda pod: pod.loads("map", "m"))
        fleet = self.fleet(looking)
        fleet.start()
        results: list[bool] = []
        waiters = [
            threading.Thread(target=lambda: results.append(fleet.wait_ready("m", 300)), daemon=True) for _ in range(3)
        ]
        for waiter in waiters:
            waiter.start()
        pod.readyz = READY
        for waiter in waiters:
            waiter.join(20)
        assert results == [True] * 3

    def test_it_ends_with_its_time_when_none_does(self, looking: Looking) -> None:
        assert not self.fleet(looking).wait_ready("m", 0.01)

    def test_it_ends_when_a_circuit_may_be_probed_and_when_the_probe_is_answered(self, looking: Looking) -> None:
        looking.pod()
        fleet = self.fleet(looking, in_a_row=1, pause=0.05)
        fleet.look()
        (pod,) = fleet.upstreams
        failing = pod.begin("m", streamed=True)
        failing.failed()
        failing.close()
        assert not fleet.wait_ready("m", 0)
        assert fleet.wait_ready("m", 20)
        probe = pod.begin("m", streamed=True)
        assert not fleet.wait_ready("m", 0)
        answering = threading.Timer(0.05, probe.answered, (200, {}))
        answering.start()
        begun = time.monotonic()
        assert fleet.wait_ready("m", 20)
        assert time.monotonic() - begun < 10, "it was woken"
        answering.join()
        probe.close()


def test_a_pod_that_was_started_anew_has_a_clean_slate(looking: Looking) -> None:
    pod = looking.pod()
    looking.break_down()
    assert not looking.takes()
    pod.loads("map", "m")
    looking.look()
    pod.readyz = READY
    looking.look(1)
    assert looking.takes()


def test_a_pod_that_answers_looks_and_breaks_requests_stays_out(looking: Looking) -> None:
    looking.pod()
    looking.break_down()
    looking.look(1)
    assert not looking.takes()
    looking.look(1)
    assert looking.takes(), "one probe"


def test_a_slow_pod_is_avoided_and_tried_again(looking: Looking) -> None:
    looking.pod()
    looking.pod()
    fleet, clock = looking.fleet, looking.clock
    good, slow = fleet.upstreams
    for pod, seconds in ((good, 0.1), (slow, 5.0)):
        for _ in range(4):
            attempt = pod.begin("m", streamed=True)
            clock.advance(seconds)
            attempt.answered(200, {})
            attempt.first_byte()
            attempt.close()
    looking.look()
    assert {fleet.choose("m").pod for _ in range(20)} == {good}  # type: ignore[union-attr]
    assert slow.breaker.slow
    fleet.lost(good, "gone")
    assert fleet.choose("m").pod is slow, "better than none"  # type: ignore[union-attr]
    looking.look(2)
    probe = slow.begin("m", streamed=True)
    assert slow.breaker.state == "half-open"
    probe.answered(200, {})
    assert str(slow.breaker.state) == "closed"
