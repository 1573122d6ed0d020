"""Which pod gets a request."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.common.orca import LOAD_HEADER, Report, read_report
from services.gateway.upstreams.affinity import Affinity
from services.gateway.upstreams.breaker import Rules
from services.gateway.upstreams.choose import Choice, Upstream, choose
from services.gateway.upstreams.upstream import REPORT_INTERVAL, STALE

NOW = 1000.0


def pod(name: str, *, inflight: int = 0, ready: bool = True, models: tuple[str, ...] = ("m",)) -> Upstream:
    return Upstream(
        f"http://{name}",
        models={model: {} for model in models},
        ready=ready,
        inflight=inflight,
        rules=Rules(in_a_row=1, pause=2),
        clock=lambda: NOW,
    )


def choose_now(pods: list[Upstream], model: str = "m", **more: Any) -> Choice | None:
    return choose(pods, model, now=NOW, **more)


def chosen(pods: list[Upstream], model: str = "m", **more: Any) -> Upstream | None:
    choice = choose_now(pods, model, **more)
    return choice and choice.pod


def break_down(*pods: Upstream) -> None:
    for one in pods:
        attempt = one.begin("m", streamed=True)
        attempt.failed()
        attempt.close()


class TestWhoMay:
    def test_a_pod_that_is_not_ready_is_not_taken(self) -> None:
        assert chosen([pod("down", ready=False)]) is None

    def test_a_pod_that_does_not_serve_the_model_is_not_taken(self) -> None:
        able = pod("able", inflight=9, models=("m", "n"))
        assert choose_now([pod("other"), able], "n") == Choice(able, "only")

    def test_a_pod_that_was_tried_is_not_taken_again(self) -> None:
        first, second = pod("first"), pod("second", inflight=5)
        assert chosen([first, second], tried=[first]) is second
        assert chosen([first], tried=[first]) is None

    def test_an_answer_is_resumed_only_where_the_engine_is_known_to_do_so(self) -> None:
        ours, other = pod("ours", inflight=5), pod("other")
        ours.models["m"] = {"owned_by": "forebay"}
        other.models["m"] = {"owned_by": "vllm"}
        assert chosen([ours, other]) is other
        assert chosen([ours, other], resuming=True) is ours
        assert chosen([other], resuming=True) is None

    def test_a_pod_whose_circuit_is_open_gets_nothing_and_then_one_probe(self) -> None:
        broken, good = pod("broken"), pod("good", inflight=9)
        break_down(broken)
        assert chosen([broken, good]) is good
        assert chosen([broken]) is None
        assert choose([broken], "m", now=NOW + 2) == Choice(broken, "only")
        broken.breaker.begin(NOW + 2)
        assert choose([broken], "m", now=NOW + 2) is None

    def test_a_slow_pod_is_better_than_none(self) -> None:
        slow, good = pod("slow"), pod("good", inflight=9)
        slow.breaker.trip(NOW)
        assert chosen([slow, good]) is good
        assert chosen([slow, good], tried=[good]) is slow


class TestLeastLoaded:
    def test_of_two_the_one_with_less_in_it_is_taken(self) -> None:
        busy, idle = pod("busy", inflight=3), pod("idle", inflight=1)
        assert {choose_now([busy, idle]) for _ in range(50)} == {Choice(idle, "least-loaded")}

    def test_what_other_gateways_sent_counts_by_the_pods_own_word(self) -> None:
        quiet, flooded = pod("quiet", inflight=3), pod("flooded")
        flooded.take_report(Report(waiting=9, running=4).header(), NOW)
        assert chosen([quiet, flooded]) is quiet

    def test_equals_share_the_requests(self) -> None:
        pods = [pod("a"), pod("b"), pod("c")]
        rng = random.Random(0)
        taken = Counter(chosen(pods, rng=rng) for _ in range(3000))
        assert all(900 < taken[one] < 1100 for one in pods)

    def test_the_most_loaded_of_several_is_never_taken(self) -> None:
        pods = [pod(str(number), inflight=number) for number in range(5)]
        rng = random.Random(0)
        taken = {chosen(pods, rng=rng) for _ in range(500)}
        assert taken == set(pods[:4])


@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.booleans()), min_size=1, max_size=10),
    st.none() | st.integers(0, (1 << 64) - 1),
    st.floats(1, 3),
    st.randoms(),
)
def test_the_dead_get_nothing_and_the_bound_holds_for_the_living(
    fleet: list[tuple[int, bool, bool]], key: int | None, bound: float, rng: random.Random
) -> None:
    pods = [pod(str(number), inflight=load, ready=ready) for number, (load, ready, _) in enumerate(fleet)]
    break_down(*(one for one, (_, _, broken) in zip(pods, fleet, strict=True) if broken))
    living = [one for one, (_, ready, broken) in zip(pods, fleet, strict=True) if ready and not broken]
    affinity = None if key is None else Affinity(key, "prefix")
    choice = choose_now(pods, affinity=affinity, bound=bound, rng=rng)
    if not living:
        assert choice is None
        return
    assert choice is not None
    assert choice.pod in living
    if affinity is not None and len(living) > 1:
        assert choice.policy in ("prefix", "spilled")
        assert choice.pod.inflight + 1 <= math.ceil(bound * (sum(one.inflight for one in living) + 1) / len(living))


def test_a_conversation_returns_and_says_by_what() -> None:
    pods = [pod(str(number)) for number in range(5)]
    for policy in ("session", "prefix"):
        choices = {choose_now(pods, affinity=Affinity(42, policy)) for _ in range(20)}  # type: ignore[arg-type]
        assert {choice.policy for choice in choices if choice} == {policy}
        assert len(choices) == 1
    (first,) = choices
    assert first is not None
    first.pod.inflight = 10
    spilled = choose_now(pods, affinity=Affinity(42, "session"))
    assert spilled is not None
    assert spilled.policy == "spilled"
    assert spilled.pod is not first.pod


class TestLoad:
    def test_a_report_counts_what_was_sent_since(self) -> None:
        one = pod("a", inflight=2)
        one.take_report(Report(waiting=1, running=8).header(), NOW)
        attempts = [one.begin("m", streamed=False) for _ in range(3)]
        assert one.load(NOW) == 12
        attempts[0].close()
        assert one.load(NOW) == 11

    def test_own_requests_are_the_least_there_is(self) -> None:
        one = pod("a", inflight=5)
        one.take_report(Report(waiting=0, running=1).header(), NOW)
        assert one.load(NOW) == 5

    def test_a_stale_report_says_nothing(self) -> None:
        one = pod("a", inflight=1)
        one.take_report(Report(waiting=7, running=1).header(), NOW - STALE)
        assert one.load(NOW) == 1
        assert one.queue is None
        one.take_report(Report(waiting=7).header(), NOW)
        assert one.queue == 7

    def test_reports_that_follow_at_once_are_not_read(self) -> None:
        one = pod("a")
        for waiting, later in ((1, 0), (2, REPORT_INTERVAL / 2), (3, REPORT_INTERVAL)):
            one.take_report(Report(waiting).header(), NOW + later)
            assert one.queue == (3 if later == REPORT_INTERVAL else 1)

    def test_an_answer_brings_a_report(self) -> None:
        one = pod("a")
        one.begin("m", streamed=False).answered(200, {LOAD_HEADER: Report(waiting=3).header()})
        assert one.queue == 3

    def test_the_wait_is_the_queue_by_the_pace(self) -> None:
        one = pod("a")
        one.take_report(Report(waiting=6, running=4, rate=2.0).header(), NOW)
        assert one.queue_wait(NOW) == 3
        assert pod("b").queue_wait(NOW) == 0
        idle = pod("c")
        idle.take_report(Report(waiting=0, running=2, capacity=4, rate=2.0).header(), NOW)
        assert idle.queue_wait(NOW) == 0
        for _ in range(4):
            idle.begin("m", streamed=True)
        assert idle.queue_wait(NOW) == 1.5, "two more than the batch holds, and the one that comes"


class TestOutcomes:
    """What of a request's end opens the circuit, which one failure does here."""

    def state_after(self, status: int | None, *, fails: bool = False) -> str:
        one = pod("a")
        attempt = one.begin("m", streamed=True)
        if status is not None:
            attempt.answered(status, {})
        if fails:
            attempt.failed()
        attempt.close()
        attempt.close()
        assert one.inflight == 0
        assert not one.unanswered
        return str(one.breaker.state)

    def test_errors_of_the_pod_do(self) -> None:
        assert {self.state_after(status) for status in (500, 502)} == {"open"}
        assert self.state_after(None, fails=True) == "open"
        assert self.state_after(200, fails=True) == "open", "it broke off in mid-answer"

    def test_errors_of_the_client_a_full_queue_a_model_that_loads_and_a_deadline_do_not(self) -> None:
        assert {self.state_after(status) for status in (200, 400, 404, 413, 422, 429, 503, 504)} == {"closed"}

    def test_a_client_that_leaves_says_nothing_of_the_pod(self) -> None:
        assert self.state_after(None) == "closed"

    def test_a_probe_closes_the_circuit_with_its_first_byte(self) -> None:
        now = NOW
        one = Upstream("http://a", rules=Rules(in_a_row=1, pause=2), clock=lambda: now)
        break_down(one)
        now += 2
        attempt = one.begin("m", streamed=True)
        assert one.breaker.state == "half-open"
        attempt.answered(200, {})
        assert str(one.breaker.state) == "closed"
        attempt.failed()
        assert str(one.breaker.state) == "open", "and opens it again if it breaks off after all"

    def test_a_probe_that_is_told_to_come_later_leaves_the_circuit_open_for_the_next(self) -> None:
        now = NOW
        one = Upstream("http://a", rules=Rules(in_a_row=1, pause=2), clock=lambda: now)
        break_down(one)
        now += 2
        attempt = one.begin("m", streamed=True)
        attempt.answered(503, {})
        attempt.close()
        assert one.breaker.state == "open"
        assert one.breaker.blocked_until == now


class TestReport:
    def test_what_a_pod_writes_a_gateway_reads(self) -> None:
        for report in (Report(3), Report(0, 8, 32, 0.25, 1.5)):
            assert read_report(report.header()) == report

    def test_vllms_text_is_read_too(self) -> None:
        text = "TEXT named_metrics.kv_cache_usage_perc=0.5, named_metrics.num_requests_waiting=2.0"
        assert read_report(text) == Report(2, kv_usage=0.5)

    def test_what_is_none_is_none(self) -> None:
        for value in ("", "JSON", "JSON []", "JSON {}", "BIN CgQ=", "TEXT a", "JSON 1", 'JSON {"named_metrics":7}'):
            assert read_report(value) is None
        assert read_report('JSON {"named_metrics":{"num_requests_waiting":-1}}') is None
        assert read_report("TEXT named_metrics.num_requests_waiting=nan") is None

    @given(st.text())
    def test_no_header_is_too_strange_to_be_read(self, value: str) -> None:
        for kind in ("JSON", "TEXT", "BIN"):
            assert read_report(f"{kind} {value}") is None or "num_requests_waiting" in value
