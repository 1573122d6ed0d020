"""What the machine, or the container, lets a pod have: cores and memory."""

from __future__ import annotations

from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
"""Where the container's limits stand (cgroup v2); without a container, or with v1, the files are not there."""


def use_own_cores() -> None:
    """Keeps torch from starting more threads than the container may run at once (cgroup v2).

    torch counts the host's cores, and threads that wait for one another while they have no core cost a hundred times
    what they save.
    """
    limit = CGROUP / "cpu.max"
    quota, period = limit.read_text().split() if limit.is_file() else ("max", "1")
    if quota != "max":
        torch.set_num_threads(max(1, min(torch.get_num_threads(), int(quota) // int(period))))


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on the device now; on CPU within the container's limit (cgroup v2)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    free = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    limit = CGROUP / "memory.max"
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Cached files count as used, but make way: a model that was just converted would seem to fill the memory.
        used = int((CGROUP / "memory.current").read_text()) - int(counts.get("inactive_file", 0))
        free = min(free, max(0, int(most) - used))
    return free
