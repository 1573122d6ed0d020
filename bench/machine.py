"""The machine that measures: its name, what processes cost (proc(5)), and what others take meanwhile."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

QUIET = 0.05
"""Part of the cores that other programs may take without a word."""
TICK = os.sysconf("SC_CLK_TCK")


def processor() -> str:
    """Its name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )


def family(pid: int) -> list[int]:
    """The process and all that descend from it. One that ended is left out."""
    found = [pid]
    for member in found:
        try:
            tasks = list(Path(f"/proc/{member}/task").iterdir())
            found.extend(int(child) for task in tasks for child in (task / "children").read_text().split())
        except FileNotFoundError:
            continue
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time that the family took so far, in user space and in the kernel, but for those that have ended."""
    return sum(_cpu(member) for member in family(pid))


def memory(pid: int) -> int:
    """Bytes of the family: its own pages, and its part of those that are shared (PSS)."""
    return sum(_memory(member) for member in family(pid))


class Others:
    """Watches, from its making on, what programs take that this one did not start."""

    def __init__(self) -> None:
        self._before = _busy()

    def share(self) -> float:
        """Their part of all cores since then: with more than `QUIET`, figures mean little."""
        clock, busy, ours = (now - then for now, then in zip(_busy(), self._before, strict=True))
        return max(0.0, busy - ours) / (clock * (os.cpu_count() or 1))


def _busy() -> tuple[float, float, float]:
    """Seconds by the clock, in which all cores together were busy, and in which they were so for us."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    stat = Path("/proc/stat")
    # user, nice, system, then idle and waiting, then interrupts and what other virtual machines took
    ticks = [int(word) for word in stat.read_text().split()[1:9]] if stat.is_file() else [0] * 8
    busy = (sum(ticks) - ticks[3] - ticks[4]) / TICK
    return time.monotonic(), busy, ended.ru_utime + ended.ru_stime + cpu_seconds(os.getpid())


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICK  # utime and stime


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
