"""The circuit breaker, the retry budget, and which pods are slow."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from services.gateway.upstreams.breaker import NO_PERMIT, Breaker, Rules
from services.gateway.upstreams.budget import LEAST_A_SECOND, WINDOW, RetryBudget
from services.gateway.upstreams.choose import laggards
from services.gateway.upstreams.upstream import Upstream

RULES = Rules(in_a_row=3, latest=10, rate=0.5, window=30, pause=2, longest_pause=8)


def fail(breaker: Breaker, times: int, now: float = 0) -> None:
    for _ in range(times):
        breaker.failed(breaker.begin(now), now)


def succeed(breaker: Breaker, times: int, now: float = 0) -> None:
    for _ in range(times):
        breaker.succeeded(breaker.begin(now), now)


class TestBreaker:
    def test_it_opens_on_failures_in_a_row(self) -> None:
        breaker = Breaker(RULES)
        fail(breaker, 2)
        assert breaker.state == "closed"
        fail(breaker, 1)
        assert breaker.state == "open"
        assert breaker.blocked_until == 2

    def test_a_success_between_them_begins_the_row_anew(self) -> None:
        breaker = Breaker(RULES)
        fail(breaker, 2)
        succeed(breaker, 1)
        fail(breaker, 2)
        assert breaker.state == "closed"

    def test_it_opens_when_half_of_the_latest_failed(self) -> None:
        breaker = Breaker(RULES)
        for _ in range(4):
            succeed(breaker, 1)
            fail(breaker, 1)
        succeed(breaker, 1)
        assert breaker.state == "closed", "nine are no window of ten"
        fail(breaker, 1)
        assert breaker.state == "open"

    def test_failures_that_are_long_ago_do_not_make_a_rate(self) -> None:
        breaker = Breaker(RULES)
        for second in range(0, 100, 10):
            succeed(breaker, 1, second)
            fail(breaker, 1, second)
        assert breaker.state == "closed"

    def test_one_probe_at_a_time_and_its_answer_closes_it(self) -> None:
        breaker = Breaker(RULES)
        fail(breaker, 3)
        probe = breaker.begin(2)
        assert breaker.state == "half-open"
        assert breaker.blocked_until == math.inf
        assert breaker.begin(2) == NO_PERMIT
        permit = breaker.succeeded(probe, 3)
        assert breaker.state == "closed"
        assert breaker.blocked_until <= 3
        breaker.failed(permit, 3)
        fail(breaker, 2, 3)
        assert breaker.state == "open", "the probe's own end counts in the closed circuit"

    def test_a_probe_that_fails_doubles_the_pause_up_to_its_limit(self) -> None:
        breaker, now = Breaker(RULES), 0.0
        fail(breaker, 3)
        pauses = []
        for _ in range(5):
            pauses.append(breaker.blocked_until - now)
            now = breaker.blocked_until
            fail(breaker, 1, now)
        assert pauses == [2, 4, 8, 8, 8]

    def test_the_pause_is_short_again_after_a_good_while(self) -> None:
        breaker = Breaker(RULES)
        fail(breaker, 3)
        fail(breaker, 1, 2)
        succeed(breaker, 1, 6)
        fail(breaker, 3, 6 + 8.5)
        assert breaker.blocked_until == 6 + 8.5 + 2

    def test_a_probe_whose_client_leaves_makes_room_for_the_next(self) -> None:
        breaker = Breaker(RULES)
        fail(breaker, 3)
        breaker.released(breaker.begin(2), 3)
        assert breaker.state == "open"
        assert breaker.probes(breaker.begin(3))

    def test_what_began_before_it_opened_says_nothing_afterwards(self) -> None:
        breaker = Breaker(RULES)
        old = breaker.begin(0)
        fail(breaker, 3)
        breaker.succeeded(old, 1)
        assert breaker.state == "open"
        breaker.begin(2)
        breaker.failed(old, 3)
        assert breaker.state == "half-open"

    def test_a_slow_pod_is_tried_again_too(self) -> None:
        breaker = Breaker(RULES)
        breaker.trip(0)
        assert (breaker.state, breaker.slow) == ("open", True)
        succeed(breaker, 1, 2)
        assert (breaker.state, breaker.slow) == ("closed", False)


class Circuit(RuleBasedStateMachine):
    """Any order of begins and ends, at any times."""

    permits: Bundle[int] = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(RULES)
        self.now = 0.0

    @rule(target=permits, seconds=st.sampled_from([0, 0.5, 1, 2, 4, 8, 40]))
    def begin(self, seconds: float) -> int:
        self.now += seconds
        before, allowed = self.breaker.state, self.breaker.blocked_until <= self.now
        permit = self.breaker.begin(self.now)
        assert (permit == NO_PERMIT) == (not allowed)
        assert self.breaker.probes(permit) == (before == "open" and allowed)
        return permit

    @rule(permit=consumes(permits))
    def succeed(self, permit: int) -> None:
        before, probed = self.breaker.state, self.breaker.probes(permit)
        self.breaker.succeeded(permit, self.now)
        assert self.breaker.state == ("closed" if probed else before)

    @rule(permit=consumes(permits))
    def fail(self, permit: int) -> None:
        before, probed = self.breaker.state, self.breaker.probes(permit)
        self.breaker.failed(permit, self.now)
        if before == "closed":
            assert self.breaker.state in ("closed", "open")
        else:
            assert self.breaker.state == ("open" if probed else before)
        if self.breaker.state == "open" and before != "open":
            assert self.breaker.blocked_until > self.now

    @rule(permit=consumes(permits))
    def leave(self, permit: int) -> None:
        before, probed = self.breaker.state, self.breaker.probes(permit)
        self.breaker.released(permit, self.now)
        assert self.breaker.state == ("open" if probed else before)

    @rule()
    def trip(self) -> None:
        self.breaker.trip(self.now)

    @invariant()
    def its_times_fit_its_state_and_it_never_stays_open(self) -> None:
        breaker = self.breaker
        assert (breaker.state == "closed") == (breaker.blocked_until == 0)
        assert (breaker.state == "half-open") == math.isinf(breaker.blocked_until)
        if breaker.state == "open":
            assert breaker.blocked_until <= self.now + RULES.longest_pause
        if breaker.slow:
            assert breaker.state != "closed"


TestCircuit = Circuit.TestCase
TestCircuit.settings = hypothesis_settings(deadline=None, max_examples=80)


class TestRetryBudget:
    def test_a_quiet_service_may_retry_so_many_times_a_second(self) -> None:
        budget = RetryBudget(0.2, clock=lambda: 0.0)
        assert sum(budget.spend() for _ in range(1000)) == LEAST_A_SECOND * WINDOW

    def test_a_busy_one_may_retry_a_part_of_its_requests_beside(self) -> None:
        budget = RetryBudget(0.2, clock=lambda: 0.0)
        for _ in range(1000):
            budget.request()
        assert sum(budget.spend() for _ in range(1000)) == LEAST_A_SECOND * WINDOW + 200

    def test_what_was_spent_is_there_again_after_the_window(self) -> None:
        now = 0.0
        budget = RetryBudget(0, clock=lambda: now)
        while budget.spend():
            pass
        now = WINDOW - 1
        assert not budget.spend()
        now = WINDOW
        assert budget.spend()

    @given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300), st.floats(0, 1))
    def test_retries_never_exceed_the_budget_of_any_window(
        self, events: list[tuple[float, bool]], ratio: float
    ) -> None:
        now = 0.0
        budget = RetryBudget(ratio, clock=lambda: now)
        requests: list[int] = []
        retries: list[int] = []
        for seconds, retry in events:
            now += seconds
            if not retry:
                budget.request()
                requests.append(int(now))
            elif budget.spend():
                retries.append(int(now))
            recent = [sum(second > int(now) - WINDOW for second in seconds) for seconds in (requests, retries)]
            assert recent[1] <= ratio * recent[0] + LEAST_A_SECOND * WINDOW or not retry


class TestLaggards:
    def pods(self, *times: list[float]) -> list[Upstream]:
        """Ready pods whose streams of `m` had these times to the first byte."""
        pods = [Upstream(f"http://{number}", ready=True, clock=lambda: self.now) for number in range(len(times))]
        for pod, seconds in zip(pods, times, strict=True):
            for took in seconds:
                attempt = pod.begin("m", streamed=True)
                self.now += took
                attempt.answered(200, {})
                attempt.first_byte()
                attempt.close()
        return pods

    now = 0.0

    def test_one_that_takes_far_longer_than_its_peers_is_slow(self) -> None:
        pods = self.pods([0.2] * 5, [0.3] * 5, [4.0] * 5)
        assert laggards(pods, self.now) == [pods[2]]

    def test_one_long_prompt_makes_no_pod_slow(self) -> None:
        assert laggards(self.pods([0.2] * 5, [0.2, 0.2, 30.0, 0.3]), self.now) == []

    def test_where_all_are_slow_none_is(self) -> None:
        assert laggards(self.pods([5.0] * 5, [6.0] * 5), self.now) == []

    def test_a_few_requests_or_less_than_a_second_prove_nothing(self) -> None:
        assert laggards(self.pods([0.2] * 5, [9.0] * 2), self.now) == []
        assert laggards(self.pods([0.01] * 5, [0.9] * 5), self.now) == []

    def test_a_pod_without_peers_is_never_slow(self) -> None:
        assert laggards(self.pods([20.0] * 5), self.now) == []

    def test_one_that_has_not_answered_at_all_yet_is_found_by_those_who_wait(self) -> None:
        pods = self.pods([0.2] * 5, [])
        waiting = [pods[1].begin("m", streamed=True) for _ in range(3)]
        self.now += 1
        assert laggards(pods, self.now) == []
        self.now += 3
        assert laggards(pods, self.now) == [pods[1]]
        for attempt in waiting:
            attempt.close()
        assert laggards(pods, self.now) == []

    def test_another_model_and_whole_answers_are_not_compared_with(self) -> None:
        pods = self.pods([0.2] * 5, [0.2] * 5)
        for kind in (("other", True), ("m", False)):
            for _ in range(5):
                pods[1].took(kind, self.now, 50.0)
        assert laggards(pods, self.now) == []

    def test_headers_that_come_before_the_first_byte_do_not_count(self) -> None:
        pods = self.pods([0.2] * 5, [])
        for _ in range(3):
            pods[1].begin("m", streamed=True).answered(200, {})
        self.now += 5
        assert laggards(pods, self.now) == [pods[1]]

    def test_of_whole_answers_the_headers_count(self) -> None:
        pods = self.pods([], [])
        for pod, seconds in zip(pods, (0.2, 5.0), strict=True):
            for _ in range(3):
                attempt = pod.begin("m", streamed=False)
                self.now += seconds
                attempt.answered(200, {})
                attempt.close()
        assert laggards(pods, self.now) == [pods[1]]

    def test_what_was_a_minute_ago_is_forgotten(self) -> None:
        pods = self.pods([0.2] * 5, [4.0] * 5)
        self.now += 61
        assert laggards(pods, self.now) == []
