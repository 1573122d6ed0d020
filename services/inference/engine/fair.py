"""Who goes next among the tenants: the virtual token counter.

Sheng et al. 2024, "Fairness in Serving Large Language Models" (OSDI): each tenant has a counter of the tokens served to
it, divided by its weight; of those who wait, the one with the least goes next. So two tenants who always have requests
waiting are served alike, whatever the number and the size of these, and nobody idles to be fair. A tenant who comes
anew is lifted to the least counter of those who wait, so that no credit is earned by being away.

The cost of a token: 1 where it is computed, 1 more where it is sampled. A generated token, which is sampled and then
computed, costs 2 against 1 for a token of the prompt, the paper's weights. What the prefix cache spares costs nothing,
since it takes nothing from the others; what is computed again after a preemption costs again.

A tenant is a salt. Priority comes before fairness; in one tenant and priority, the first to arrive is the first to go.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count

from services.inference.engine.sequence import Sequence

REMEMBERED = 1024
"""Tenants known at once, beyond which those are forgotten whom the next arrival would lift anyway."""


@dataclass
class Tenant:
    """What one tenant has in the engine. waiting: by priority, then arrival. served: cost of its tokens by weight."""

    served: float = 0.0
    running: int = 0
    waiting: list[Sequence] = field(default_factory=list)


class FairQueue:
    """The waiting sequences of all tenants, and the count of what each tenant was served."""

    def __init__(self) -> None:
        self._tenants: dict[str, Tenant] = {}
        self._backlog: dict[str, Tenant] = {}  # those of them with something waiting
        self._last = Tenant()  # the one who was the last to leave the backlog
        self._arrivals = count(1)

    def __len__(self) -> int:
        return sum(len(tenant.waiting) for tenant in self._backlog.values())

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for tenant in self._backlog.values() for sequence in tenant.waiting)

    def tenant(self, sequence: Sequence) -> Tenant:
        """Whose a sequence is that is waiting or running."""
        return self._tenants[sequence.salt]

    def push(self, sequence: Sequence) -> None:
        """Puts a sequence in its place; one that was here before waits where it did, ahead of all who came later."""
        tenant = self._tenants.get(sequence.salt) or self._new(sequence.salt)
        if not tenant.waiting:
            tenant.served = max(tenant.served, self._level())
            self._backlog[sequence.salt] = tenant
        sequence.arrival = sequence.arrival or next(self._arrivals)
        insort(tenant.waiting, sequence, key=_place)

    def head(self, passed: Collection[Sequence] = ()) -> Sequence | None:
        """Who goes next, leaving out those who are passed over; None when nobody else waits.

        Of two tenants with the same counter, the one with less running goes first: the one who has just come.
        """
        ahead: tuple[tuple[int, float, int, int], Sequence] | None = None
        for tenant in self._backlog.values():
            for sequence in tenant.waiting:
                if sequence in passed:
                    continue
                rank = (sequence.priority, tenant.served, tenant.running, sequence.arrival)
                if ahead is None or rank < ahead[0]:
                    ahead = rank, sequence
                break
        return ahead[1] if ahead else None

    def start(self, sequence: Sequence) -> None:
        """A waiting sequence runs from now on."""
        self.remove(sequence)
        self.tenant(sequence).running += 1

    def stop(self, sequence: Sequence) -> None:
        """A running sequence runs no more."""
        self.tenant(sequence).running -= 1

    def charge(self, sequence: Sequence, tokens: int) -> None:
        """Counts tokens computed or sampled for a running sequence."""
        self._tenants[sequence.salt].served += tokens / sequence.weight

    def remove(self, sequence: Sequence) -> None:
        """Takes a waiting sequence out.

        Raises:
            ValueError: it does not wait.
        """
        tenant = self._backlog.get(sequence.salt)
        index = bisect_left(tenant.waiting, _place(sequence), key=_place) if tenant else 0
        if tenant is None or index == len(tenant.waiting) or tenant.waiting[index] is not sequence:
            raise ValueError("the sequence does not wait")
        del tenant.waiting[index]
        if not tenant.waiting:
            del self._backlog[sequence.salt]
            self._last = tenant

    def _level(self) -> float:
        """The counter of the tenant who would go next; when nobody waits, of the one who last did."""
        return min((tenant.served for tenant in self._backlog.values()), default=self._last.served)

    def _new(self, salt: str) -> Tenant:
        if len(self._tenants) >= REMEMBERED:
            level = self._level()
            self._tenants = {
                known: tenant
                for known, tenant in self._tenants.items()
                if tenant.waiting or tenant.running or tenant.served > level
            }
        tenant = self._tenants[salt] = Tenant()
        return tenant


def _place(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.arrival
