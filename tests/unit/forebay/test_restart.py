"""The restart policy, as a state machine: deaths go in, pauses come out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forebay.restart import Policy, Record, after_death

policies = st.builds(
    Policy,
    first_pause=st.floats(0.1, 5),
    longest_pause=st.floats(5, 60),
    failures=st.integers(1, 10),
    healthy_after=st.floats(1, 100),
)
lives = st.lists(st.floats(0, 200), max_size=40)
"""How long a child was ready in each of its lives, in seconds."""


def pauses(policy: Policy, ready: list[float]) -> list[float | None]:
    record, given_pauses = Record(), []
    for ready_for in ready:
        record, pause = after_death(record, policy, ready_for=ready_for)
        given_pauses.append(pause)
        if pause is None:
            break
    return given_pauses


def test_the_pause_doubles_from_death_to_death_until_the_supervisor_gives_up() -> None:
    assert pauses(Policy(), [0] * 9) == [1, 2, 4, 8, None]


def test_a_minute_of_health_starts_a_new_row() -> None:
    assert pauses(Policy(), [0, 0, 0, 61, 0, 59]) == [1, 2, 4, 1, 2, 4]


@given(policies, lives)
def test_no_pause_is_longer_than_the_longest(policy: Policy, ready: list[float]) -> None:
    assert all(pause <= policy.longest_pause for pause in pauses(policy, ready) if pause is not None)


@given(policies, lives)
def test_within_one_row_the_pause_never_shrinks(policy: Policy, ready: list[float]) -> None:
    sick = [min(ready_for, policy.healthy_after / 2) for ready_for in ready]
    found = [pause for pause in pauses(policy, sick) if pause is not None]
    assert found == sorted(found)


@given(policies, lives)
def test_giving_up_takes_exactly_the_allowed_deaths_in_a_row(policy: Policy, ready: list[float]) -> None:
    record, row = Record(), 0
    for ready_for in ready:
        record, pause = after_death(record, policy, ready_for=ready_for)
        row = 1 if ready_for >= policy.healthy_after else row + 1
        assert (pause is None) == (row >= policy.failures)
        if pause is None:
            return


@given(policies, lives)
def test_every_restart_is_counted_for_good(policy: Policy, ready: list[float]) -> None:
    record, started = Record(), 0
    for ready_for in ready:
        record, pause = after_death(record, policy, ready_for=ready_for)
        started += pause is not None
        assert record.restarts == started
        if pause is None:
            return
