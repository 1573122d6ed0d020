"""When a child that died is started again: pure arithmetic, so that property tests can drive it without processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """How patient the supervisor is. All times in seconds."""

    first_pause: float = 1.0
    longest_pause: float = 30.0
    failures: int = 5
    """Deaths in a row after which the supervisor gives up."""
    healthy_after: float = 60.0
    """A child that was ready this long before it died starts a new row."""


@dataclass(frozen=True)
class Record:
    """What is remembered of one child."""

    row: int = 0
    """Deaths since it was last healthy."""
    restarts: int = 0
    """Starts after the first, over the supervisor's whole life."""


def after_death(record: Record, policy: Policy, *, ready_for: float) -> tuple[Record, float | None]:
    """The record after one more death, and the pause before the next start; None means give up.

    `ready_for` is how long the child had been ready when it died, 0 if it never was.
    """
    row = 1 if ready_for >= policy.healthy_after else record.row + 1
    if row >= policy.failures:
        return Record(row, record.restarts), None
    pause = min(policy.longest_pause, policy.first_pause * 2 ** (row - 1))
    return Record(row, record.restarts + 1), pause
