"""What a step costs, shared out to those it computed."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine.meter import Pace, share
from services.inference.engine.schedule import Work
from services.inference.engine.sequence import Sequence

COUNTS = st.lists(st.integers(1, 512), min_size=1, max_size=32)
COSTS = st.floats(1e-6, 1e3)
STEPS = st.lists(st.tuples(COSTS, COSTS, st.lists(st.tuples(st.integers(0, 7), st.integers(1, 512)), min_size=1)))


def request() -> Sequence:
    return Sequence([1], 1, 1)


@given(COSTS, COUNTS)
def test_each_request_pays_for_its_tokens(cost: float, counts: list[int]) -> None:
    plan = [Work(request(), count) for count in counts]
    share(plan, cost, 2 * cost)
    for work in plan:
        assert math.isclose(work.sequence.seconds, cost * work.count / sum(counts))
        assert work.sequence.joules is not None
        assert math.isclose(work.sequence.joules, 2 * work.sequence.seconds)


@given(STEPS)
def test_the_sum_over_requests_is_the_sum_of_the_steps(steps: list[tuple[float, float, list[tuple[int, int]]]]) -> None:
    requests = [request() for _ in range(8)]
    for seconds, joules, members in steps:
        share([Work(requests[who], count) for who, count in dict(members).items()], seconds, joules)
    assert math.isclose(sum(one.seconds for one in requests), sum(step[0] for step in steps))
    assert math.isclose(sum(one.joules or 0 for one in requests), sum(step[1] for step in steps))


def test_energy_that_is_not_known_is_absent_and_not_zero() -> None:
    one = request()
    share([Work(one, 1)], 0.5, None)
    assert (one.seconds, one.joules) == (0.5, None)


def test_a_request_with_one_step_of_unknown_energy_is_of_unknown_energy() -> None:
    one = request()
    share([Work(one, 1)], 0.5, 100.0)
    share([Work(one, 1)], 0.5, None)
    assert one.joules is None


def test_the_pace_is_not_known_from_one_end_alone() -> None:
    pace = Pace()
    pace.ended()
    assert pace.seconds == 1.0
    pace.ended()
    assert pace.seconds < 1.0


def test_a_rest_between_two_requests_does_not_slow_the_pace() -> None:
    pace = Pace()
    pace.ended()
    pace.rests()
    pace.ended()
    assert pace.seconds == 1.0
    assert pace.rate is None
    pace.ended()
    assert pace.rate is not None
    assert pace.rate == 1 / pace.seconds > 1
