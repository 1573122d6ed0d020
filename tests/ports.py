"""Ports for servers that must be told theirs, given by nobody else until they listen.

A port that the system chose for a moment and took back may be anybody's a moment later: the system chooses it again for
the next server that asks, of this process or of another that shares the suite. So these are below the ones that the
system gives, each process of the suite has a range of its own, and none is given twice before all have been.
"""

from __future__ import annotations

import itertools
import os
import random
import socket

FIRST, END = 12000, 32000
PROCESSES = 8
"""Processes of one suite that have a range of their own."""


def _range() -> range:
    """Of the whole for a suite in one process, else of this process' part (`gw3` is the fourth)."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker:
        return range(FIRST, END)
    size = (END - FIRST) // PROCESSES
    begin = FIRST + int(worker.removeprefix("gw")) % PROCESSES * size
    return range(begin, begin + size)


_ports = _range()
# Not always from the first one on, as several suites may share the machine.
_next = itertools.cycle([*_ports[(start := random.randrange(len(_ports))) :], *_ports[:start]])


def free_row(count: int) -> int:
    """The first of so many ports in a row that are free now."""
    for _ in range(1000):
        row = [next(_next) for _ in range(count)]
        if row[-1] - row[0] == count - 1 and all(map(_is_free, row)):
            return row[0]
    raise AssertionError(f"no {count} free ports in a row")


def free_port() -> int:
    """A port that is free now."""
    return free_row(1)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))  # every address, of which a server may want any
        except OSError:
            return False
    return True
