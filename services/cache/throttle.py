"""Attempts by account, of which each has so many at once and then one more at even times: for guesses of passwords.

An attempt is taken before it is made, so that a thousand guesses at once are no more than one after the other, and
given back where it succeeded. Exact over all gateway processes by `lua/throttle.lua`; while Redis is down each process
counts in its own memory, by the same rules.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.cache.connection import CacheDown, Connection

MAX_ACCOUNTS = 10_000
"""Accounts that a process counts by itself, before it drops those that it has seen longest ago."""


@dataclass(frozen=True)
class Account:
    """`name` has `attempts` at once; a spent one is back after `window / attempts` seconds."""

    name: str
    attempts: int
    window: float

    @property
    def interval(self) -> int:
        """Milliseconds until a spent attempt is back."""
        return max(1, round(self.window * 1000 / self.attempts))


class Throttle:
    """Takes attempts, and gives them back."""

    def __init__(self, connection: Connection, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._script = connection.script("throttle")
        self._local = Attempts(clock)

    def take(self, accounts: Sequence[Account]) -> float:
        """Takes an attempt from every account: 0; or from none, as one has none left: the seconds until it has."""
        try:
            return self._run(1, accounts) / 1000
        except CacheDown:
            return self._local.take(accounts)

    def give_back(self, accounts: Sequence[Account]) -> None:
        """Undoes a `take`."""
        self._local.give_back(accounts)
        with contextlib.suppress(CacheDown):
            self._run(-1, accounts)

    def _run(self, sign: int, accounts: Sequence[Account]) -> int:
        args = [sign, *(value for account in accounts for value in (account.attempts, account.interval))]
        return int(
            self._connection.run(self._script, [f"forebay:attempts:{account.name}" for account in accounts], args)
        )


class Attempts:
    """The rules of `lua/throttle.lua`, in this process' memory. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._full: dict[str, int] = {}
        """When each account has all its attempts again, in milliseconds of the clock."""

    def take(self, accounts: Sequence[Account]) -> float:
        """As `Throttle.take`."""
        now = int(self._clock() * 1000)
        full = {account.name: max(now, self._full.get(account.name, 0)) + account.interval for account in accounts}
        wait = max(full[account.name] - account.attempts * account.interval - now for account in accounts)
        if wait > 0:
            return wait / 1000
        self._keep(full, now)
        return 0.0

    def give_back(self, accounts: Sequence[Account]) -> None:
        """As `Throttle.give_back`."""
        now = int(self._clock() * 1000)
        known = [account for account in accounts if account.name in self._full]
        self._keep({account.name: self._full[account.name] - account.interval for account in known}, now)

    def _keep(self, full: dict[str, int], now: int) -> None:
        for name, moment in full.items():
            self._full.pop(name, None)
            if moment > now:
                self._full[name] = moment
        if len(self._full) > MAX_ACCOUNTS:
            self._full = {name: moment for name, moment in self._full.items() if moment > now}
            while len(self._full) > MAX_ACCOUNTS:
                del self._full[next(iter(self._full))]
